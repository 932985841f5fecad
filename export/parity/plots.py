"""The page's pictures, as SVG that takes its colours from the page: light or dark, no files, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lavila_fast.export.parity.limits import POINTS, Section
from lavila_fast.export.parity.measure import EDGES
from lavila_fast.page import ACCENT, INK, SECOND, svg


def error_histogram(graph: str, error: Mapping[str, Any], name: str) -> str:
    """How large the errors of a graph's outputs are, in decades of their size."""

    def draw(axes: Any) -> None:
        counts = error["histogram"]
        total = max(sum(counts), 1)
        axes.bar(EDGES[:-1], [100 * c / total for c in counts], 0.23, align="edge", color=ACCENT)
        axes.set_title(f"{graph}: errors of its outputs")
        axes.set_ylabel("% of numbers")
        axes.set_xticks(range(-9, 2, 2), ["≤1e-9", *(f"1e{x}" for x in range(-7, 2, 2))])
        axes.set_xlabel("error / size of the outputs (rms)")

    return svg(draw, name)


def kl_by_position(places: Mapping[str, Sequence[float]], name: str) -> str:
    """Divergence of the next-word distributions along a sentence."""

    def draw(axes: Any) -> None:
        x = range(1, len(places["mean"]) + 1)
        axes.plot(x, places["mean"], color=ACCENT, marker=".", label="mean")
        axes.plot(x, places["p90"], color=SECOND, linestyle="--", label="90th percentile")
        axes.set_title("next word: KL from the reference, by place in the sentence")
        axes.set_xlabel("token")
        axes.set_ylabel("nats")
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-3, 3))
        axes.legend()

    return svg(draw, name)


def layer_errors(layers: Sequence[float], name: str) -> str:
    """Relative error of the decoder's keys and values, block by block."""

    def draw(axes: Any) -> None:
        axes.bar([str(i) for i in range(len(layers))], layers, color=ACCENT, width=0.6)
        axes.set_title("decoder: relative error of keys and values, by depth")
        axes.set_xlabel("block")
        axes.ticklabel_format(axis="y", scilimits=(-3, 3))
        axes.margins(x=0.5 / max(len(layers), 1))

    return svg(draw, name)


_BARS = {"sentence": "sentence", "verb": "verb", "object": "object", "cider": "CIDEr"} | {
    name: what.replace(", ", "\n").replace(" to ", "→") for name, what in POINTS.items() if name != "sentence"
}


def quality_bars(section: Section, name: str) -> str:
    """Task quality of reference and engine side by side."""
    shown = [(label, section.quality[key], key) for key, label in _BARS.items() if key in section.quality]

    def draw(axes: Any) -> None:
        for offset, who, colour in ((-0.2, "reference", SECOND), (0.2, "engine", ACCENT)):
            values = [row[who] * (10 if key == "cider" else 100) for _, row, key in shown]
            bars = axes.bar([i + offset for i in range(len(shown))], values, 0.38, color=colour, label=who)
            axes.bar_label(bars, fmt="%.1f", fontsize=8, color=INK)
        axes.set_xticks(range(len(shown)), [label for label, *_ in shown])
        axes.set_ylim(0, 112)
        axes.set_ylabel("% of the best possible")
        axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18 if len(shown) > 4 else -0.12))
        axes.set_title("the kitchen: what is got right")

    return svg(draw, name, height=3.0)
