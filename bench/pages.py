"""Results as Markdown tables and plots, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavila_fast.bench.timing import stamp
from lavila_fast.errors import MissingExtraError
from lavila_fast.files import write_json, write_text

INK, SOFT, ACCENT = "#22303c", "#9fb3c8", "#d1495b"


def row(*cells: Any) -> str:
    """A line of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def head(*cells: str) -> list[str]:
    """A table's first two lines."""
    return [row(*cells), "|" + "---|" * len(cells)]


def time_of(value: float) -> str:
    """Seconds, in the unit that reads best."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def bench_page(result: dict[str, Any]) -> str:
    """What `bench.run.measure_model` measured, as Markdown."""
    names = {
        "encode": "encode",
        "first_token": "to the first token",
        "token": "each further token",
        "clip": "the whole clip",
    }
    lines = [f"{result['what']}; engine {result['engine']}", "", *head("one clip alone", "p50", "p90", "p99")]
    for name, said in names.items():
        if name in result["latency"]:
            lines.append(row(said, *(time_of(result["latency"][name][p]) for p in ("p50", "p90", "p99"))))
    lines += ["", *head("clips in flight", "clips/s", "tokens/s", "encode", "join + step", "sample", "a clip")]
    for one in result["throughput"]:
        spent = one["seconds_a_clip"]
        parts = spent["encode"], spent["join"] + spent.get("step", 0.0), spent["sample"], spent["all"]
        lines.append(row(one["batch"], f"{one['clips_per_s']:.3g}", f"{one['tokens_per_s']:.4g}", *map(time_of, parts)))
    lines += ["", *_share_lines(result)]
    file = result["file"]
    lines += [
        "",
        f"`{file['video']}`, {file['clips']} clips: read {time_of(file['read_s'])}, write {time_of(file['write_s'])}, "
        f"end to end {time_of(file['end_to_end_s'])} ({file['times_real_time']:.3g} times real time).",
    ]
    if result["memory"]:
        peak, opened = (result["memory"][name] / 2**20 for name in ("peak_bytes", "open_bytes"))
        lines.append(f"Memory: {peak:.0f} MiB at most, {opened:.0f} MiB with the model open.")
    return "\n".join([*lines, "", f"{stamp(result['machine'])}. `{result['command']}`"]) + "\n"


def _share_lines(result: dict[str, Any]) -> list[str]:
    lines = head("part", "GFLOP a clip", "GFLOP/s", "machine's peak", "share")
    for part in ("encoder", "decoder"):
        share = result["share"][part]
        peak = result["peaks"][share["type"]]
        told = f"{peak['gflops']:.4g} ({share['type']}, {peak['by']})" if peak["gflops"] else peak["reason"]
        percent = f"{share['percent_of_peak']:.1f}%" if share["percent_of_peak"] is not None else "unknown"
        lines.append(row(part, f"{share['gflop']:.3g}", f"{share['gflops']:.4g}", told, percent))
    return lines


def bench_plot(result: dict[str, Any], path: Path) -> None:
    """Throughput over clips in flight, and where a clip's time goes."""
    rows = result["throughput"]
    with _figure(path, 2, (9, 3.4)) as (left, right):
        batches = [str(one["batch"]) for one in rows]
        left.plot(batches, [one["clips_per_s"] for one in rows], "o-", color=ACCENT)
        left.set(xlabel="clips in flight", ylabel="clips a second", ylim=(0, None))
        bottom = [0.0] * len(rows)
        for part, colour in (("encode", SOFT), ("join", "#66a182"), ("step", INK), ("sample", ACCENT)):
            heights = [one["seconds_a_clip"].get(part, 0.0) for one in rows]
            right.bar(batches, heights, bottom=bottom, color=colour, label=part)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        right.set(xlabel="clips in flight", ylabel="seconds a clip")
        right.legend(frameon=False, fontsize=8)


class _figure:
    """A figure with `count` axes, saved when the block ends; the same bytes for the same figures."""

    def __init__(self, path: Path, count: int, size: tuple[float, float]) -> None:
        try:
            import matplotlib
        except ImportError as error:
            raise MissingExtraError("matplotlib", "export") from error
        matplotlib.rcParams.update({"svg.hashsalt": "lavila_fast", "font.size": 9})
        from matplotlib.figure import Figure  # no pyplot: no window, no global state

        self.path, self.figure = path, Figure(figsize=size, layout="constrained")
        self.axes = self.figure.subplots(1, count, squeeze=False)[0]

    def __enter__(self) -> Any:
        for axes in self.axes:
            axes.spines[["top", "right"]].set_visible(False)
        return self.axes

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.figure.savefig(self.path, metadata={"Date": None} if self.path.suffix == ".svg" else None)


def engines_plot(result: dict[str, Any], path: Path) -> None:
    """Speed-up over the uncached reference of every contestant, long bars being fast."""
    rows = [one for one in result["narration"] if one["speedup"]]
    cases = {"77": "sentences of 77 tokens", "12": "12 tokens on average"}
    with _figure(path, len(cases), (10, 0.6 + 0.32 * len(rows))) as axes:
        for ax, (case, title) in zip(axes, cases.items(), strict=True):
            mine = [one for one in rows if one["case"] == case]
            names = [f"{one['engine']}, {one['clips_in_flight']} in flight" for one in mine]
            colours = [ACCENT if "int8" in one["engine"] else INK for one in mine]
            bars = ax.barh(range(len(mine)), [one["speedup"] for one in mine], color=colours)
            ax.bar_label(bars, [f"{one['speedup']:.3g}×" for one in mine], padding=3)
            ax.set(yticks=range(len(mine)), yticklabels=names, xscale="log", title=title)
            ax.set(xlabel="times the uncached reference")
            ax.set_xlim(left=min([1.0, *(0.8 * one["speedup"] for one in mine)]))
            ax.invert_yaxis()
            ax.margins(x=0.25)


def save(result: dict[str, Any], output: Path, page: str) -> list[Path]:
    """Write the JSON file, and its page beside it."""
    write_json(output, result)
    write_text(output.with_suffix(".md"), page)
    return [output, output.with_suffix(".md")]


def engines_page(result: dict[str, Any]) -> str:
    """What `bench.engines` measured, as Markdown."""
    lines = [result["what"], "", *_narration_lines(result), *_encoder_lines(result), *_quality_lines(result)]
    peaks = {k: v for k, v in result["peaks"].items() if isinstance(v, dict)}
    told = [
        f"{kind} {peak['gflops']:.4g} GFLOP/s ({peak['by']})" if peak["gflops"] else f"{kind} {peak['reason']}"
        for kind, peak in peaks.items()
    ]
    if result["peaks"]["read_gb_per_s"]:
        told.append(f"reading memory {result['peaks']['read_gb_per_s']:.3g} GB/s")
    lines += ["", f"GEMM peaks of this machine, timed before and after: {', '.join(told)}.", ""]
    lines += [f"- {name}: {note}" for name, note in result["notes"].items()]
    lines += [f"- {name}: not measured; {why}" for name, why in result["missing"].items()]
    lines += ["", f"{stamp(result['machine'])}; {result['seconds']} s in all. `{result['command']}`"]
    return "\n".join(lines) + "\n"


def _narration_lines(result: dict[str, Any]) -> list[str]:
    columns = ("narration", "tokens", "in flight", "a clip", "speed-up", "share of limit")
    lines = head(*columns, "encode", "join + step", "sample", "decoder, share of peak")
    base = result["uncached"]
    if base:
        lines.append(
            row("uncached PyTorch", 77, 1, time_of(base["clip_s"]), "1×", "", time_of(base["encode_s"]), *[""] * 3)
        )
    for one in sorted(result["narration"], key=lambda one: (-int(one["case"]), -one["clip_s"])):
        spent = one.get("seconds_a_clip")
        parts = (spent["encode"], spent["join"] + spent["step"], spent["sample"]) if spent else ()
        cells = [time_of(part) for part in parts] or ["", "", ""]
        speed = f"{one['speedup']:.3g}×" if one["speedup"] else "unknown"
        front = one["engine"], one["case"], one["clips_in_flight"], time_of(one["clip_s"]), speed
        lines.append(
            row(*front, percent(one.get("percent_of_limit")), *cells, percent(one.get("decoder_percent_of_peak")))
        )
    return lines


def percent(value: float | None) -> str:
    """A share, or nothing."""
    return "" if value is None else f"{value:.0f}%"


def _encoder_lines(result: dict[str, Any]) -> list[str]:
    lines = ["", *head("encoder, pool, keys and values", "a clip", "GFLOP/s", "share of peak")]
    for one in sorted(result["encoder"], key=lambda one: -float(one["clip_s"])):
        lines.append(
            row(one["engine"], time_of(one["clip_s"]), f"{one['gflops']:.4g}", percent(one["percent_of_peak"]))
        )
    return lines


def _quality_lines(result: dict[str, Any]) -> list[str]:
    if not result["quality"]:
        return []
    lines = ["", *head("shipped small model", "split", "clips", "PyTorch", "engine", "points lost")]
    for one in result["quality"]:
        name = f"{one['engine']}, {one['figure'].replace('_', ' ')}"
        figures = (f"{one[key]:.2f}" for key in ("reference", "mine", "points_lost"))
        lines.append(row(name, one["split"].replace("_", " "), one["clips"], *figures))
    return lines
