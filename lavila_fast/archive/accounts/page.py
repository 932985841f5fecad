"""The page of an account: figures, where time went, runs, coverage, what failed; one file, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lavila_fast.errors import MissingExtraError
from lavila_fast.page import ACCENT, SECOND, document, html_table, number, svg
from lavila_fast.shown import many, shown

_RUNS = 40  # that are drawn


def render(told: Mapping[str, Any]) -> str:
    """The page of what `account.account` tells."""
    title = "Account of " + ", ".join(told["outputs"])
    parts = [
        f"<h1>{_safe(title)}</h1>",
        _facts(told),
        "<h2>Where the time went</h2>",
        f'<div class="plots">{"".join(_plots(told))}</div>',
        _failures(told),
        _worst(told),
        _runs(told),
    ]
    return document(shown(title), "\n".join(part for part in parts if part))


def _safe(text: object) -> str:
    return escape(shown(text))


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"


def _facts(told: Mapping[str, Any]) -> str:
    videos = ", ".join(f"{count:,} {name}" for name, count in told["videos"].items() if name != "total" and count)
    facts = {
        "videos": f"{told['videos']['total']:,} ({videos or 'none'})",
        "hours of video": f"{told['hours']:,.2f}, {_percent(told['coverage'])} of them covered",
        "clips": f"{told['clips']:,}, {told['damaged']:,} of them damaged",
        "runs": f"{told['runs']:,}, {told['unfinished']:,} of them not to an end",
        "time": f"{number(round(told['seconds'] / 3600, 4))} hours",
        "speed": _speed(told),
        "of the engine alone": _bare(told),
        "decoding": f"{_percent(told['decode_share_of_cpu'])} of CPU time",
    }
    if "price" in told:
        per = told["cost_per_1000_hours"]
        thousand = "not known" if per is None else f"{per:,.2f} per 1,000 hours of video"
        facts["cost"] = f"{told['cost']:,.2f}, {thousand}, at {told['price']:g} a machine-hour"
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{_safe(text)}</dd>" for name, text in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _speed(told: Mapping[str, Any]) -> str:
    if told["clips_per_second"] is None:
        return "not known"
    return f"{number(told['clips_per_second'])} clips/s, {number(told['times_real_time'])} × real time"


def _bare(told: Mapping[str, Any]) -> str:
    busy = f"the model was at work {_percent(told['engine_busy'])} of the time"
    if told["of_bare_engine"] is None:
        return f"not measured; {busy}"
    return f"{_percent(told['of_bare_engine'])}, from {told['of_bare_engine_from_clips']:,} clips; {busy}"


def _plots(told: Mapping[str, Any]) -> list[str]:
    stages = {name: share for name, share in told["stages"].items() if share}
    drawings = {
        "stages": (_bars(stages, "share of the main thread's time, %", 100), stages),
        "runs": (_speeds(told["history"][-_RUNS:]), told["history"]),
        "coverage": (_histogram(told["coverage_counts"]), any(told["coverage_counts"])),
    }
    try:
        return [svg(draw, name) for name, (draw, there) in drawings.items() if there]
    except MissingExtraError as error:
        return [f"<p class=soft>no plots: {escape(str(error))}</p>"]


def _bars(values: Mapping[str, float], label: str, scale: float) -> Any:
    def draw(axes: Any) -> None:
        bars = axes.barh(list(values), [scale * value for value in values.values()], color=ACCENT, height=0.6)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=3)
        axes.set_title(label)
        axes.set_xlim(0, 112)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    return draw


def _speeds(runs: Sequence[Mapping[str, Any]]) -> Any:
    speeds = [run["video_seconds"] / run["seconds"] if run["seconds"] else 0.0 for run in runs]

    def draw(axes: Any) -> None:
        colours = [ACCENT if run["ended"] == "done" else SECOND for run in runs]
        axes.bar(range(1, len(runs) + 1), speeds, color=colours, width=0.6)
        axes.set_title("× real time of each run (pale: not to its end)")
        axes.set_xticks(range(1, len(runs) + 1, max(len(runs) // 8, 1)))
        axes.set_xlim(0.4, max(len(runs), 6) + 0.6)

    return draw


def _histogram(counts: Sequence[int]) -> Any:
    def draw(axes: Any) -> None:
        axes.bar([10 * n + 5 for n in range(len(counts))], counts, color=ACCENT, width=9)
        axes.set_title("videos by how much of them is covered, %")
        axes.set_xlim(0, 101)
        axes.yaxis.get_major_locator().set_params(integer=True)

    return draw


def _failures(told: Mapping[str, Any]) -> str:
    if not told["reasons"]:
        return ""
    rows = [
        [escape(code), "<br>".join(_safe(line) for line in why["examples"]), f"{why['videos']:,}"]
        for code, why in told["reasons"].items()
    ]
    return f"<h2>What failed</h2>{html_table(['reason', 'such as', 'videos'], rows, numeric=2)}"


def _worst(told: Mapping[str, Any]) -> str:
    rows = [[_safe(one["video"]), _percent(one["coverage"])] for one in told["worst"]]
    return f"<h2>Least covered</h2>{html_table(['video', 'covered'], rows)}" if rows else ""


def _runs(told: Mapping[str, Any]) -> str:
    rows = [_run(run) for run in told["history"][-_RUNS:]]
    if not rows:
        return ""
    heads = ["began", "ended", "engine", "processors", "clips", "failed", "hours", "× real time", "of the engine alone"]
    left = len(told["history"]) - len(rows)
    more = f"<p class=soft>{many(left, 'earlier run')} left out</p>" if left else ""
    return f"<h2>Runs</h2>{html_table(heads, rows, numeric=3)}{more}"


def _run(run: Mapping[str, Any]) -> list[str]:
    began = run["began"][:19].replace("T", " ") + (f" and {run['runs'] - 1:,} more" if run["runs"] > 1 else "")
    speed = number(round(run["video_seconds"] / run["seconds"], 2)) if run["seconds"] else "–"
    bare = _percent(run["bare_seconds"] / run["bare_of"]) if run["bare_of"] else "–"
    texts = [_safe(began), _safe(run["ended"]), _safe(run["engine"])]
    return [
        *texts,
        f"{run['cpus']}",
        f"{run['clips']:,}",
        f"{run['failed']:,}",
        number(round(run["seconds"] / 3600, 3)),
        speed,
        bare,
    ]
