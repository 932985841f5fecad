"""The targets of large archives and what was reached: the last line of `bench.archive`, and the table of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lavila_fast.bench.sections import Sections


@dataclass(frozen=True)
class Target:
    """A figure of the last line.

    Attributes:
        section: That tells it.
        what: In words.
        goal: That it must reach; None: it is told beside others.
        least: Whether it must be at least that; else at most.
        unit: Behind it.
    """

    section: str
    what: str
    goal: float | None = None
    least: bool = False
    unit: str = ""

    def reached(self, value: float | None) -> bool | None:
        """Whether a figure is as it should be; None where there is none."""
        if value is None or self.goal is None:
            return None
        return value >= self.goal if self.least else value <= self.goal


TARGETS = {  # key of the last line
    "narrate_vs_bare_engine": Target("end_to_end", "`narrate` against the bare engine", 0.95, least=True),
    "one_pass_ratio": Target("one_pass", "`narrate --embed` against narrating + the dual encoder's compute", 1.15),
    "plan_seconds": Target("planning", "`plan`", 30, unit="s"),
    "plan_peak_mb": Target("planning", "its memory", 300, unit="MB"),
    "begin_seconds": Target("planning", "a new run, until it decodes its first clip", 30, unit="s"),
    "begin_peak_mb": Target("planning", "its memory", 300, unit="MB"),
    "resume_seconds": Target("resume", "a resumed run, until it decodes its first clip", 30, unit="s"),
    "resume_peak_mb": Target("resume", "its memory", 500, unit="MB"),
    "reindex_seconds": Target("reindex", "the same where the index is lost", unit="s"),
    "reindex_peak_mb": Target("reindex", "its memory", unit="MB"),
    "memory_growth_percent": Target("long_film", "a long film: its second half's peak above its first's", 1, unit="%"),
    "s3_vs_local": Target("objects", "a film in object storage at 5 ms against one on the disk", 0.9, least=True),
    "bytes_vs_size": Target("objects", "bytes fetched for each of the film", 1.05),
    "search_windows": Target("search", "windows in an index"),
    "search_build_s": Target("search", "making it", 300, unit="s"),
    "search_build_mib": Target("search", "its memory", 2048, unit="MiB"),
    "search_p50_ms": Target("search", "an answer, middle", 30, unit="ms"),
    "search_p99_ms": Target("search", "an answer, slowest of a hundred", 100, unit="ms"),
    "search_recall_at_10": Target("search", "of the ten nearest, found", 0.98, least=True),
    "moments_iou_half": Target("moments", "events whose best moment overlaps them by half", 0.9, least=True),
}

_CPU = {
    "plan_cpu_seconds": "`plan`",
    "begin_cpu_seconds": "a run's beginning",
    "resume_cpu_seconds": "resuming",
    "reindex_cpu_seconds": "resuming",
}


def headline(sections: Sections) -> dict[str, Any]:
    """The last line: what its sections say, None where they were not run, and the targets that were missed."""
    told = {key: sections.get(target.section, {}).get(key) for key, target in TARGETS.items()}
    return {**told, "missed": [key for key, value in told.items() if TARGETS[key].reached(value) is False]}


def archive_table(result: Mapping[str, Any]) -> str:
    """Targets and what was reached, from ``archive.json``."""
    sections, rows = result["sections"], ["| | target | here |", "|---|---:|---:|"]
    for key, target in TARGETS.items():
        value = sections.get(target.section, {}).get(key)
        goal = "" if target.goal is None else f"{'≥' if target.least else '≤'} {_number(target.goal, target)}"
        told = "not measured yet" if value is None else _number(value, target)
        rows.append(f"| {target.what} | {goal} | {told}{' (missed)' if target.reached(value) is False else ''} |")
    return "\n".join([*rows, "", *_notes(sections)])


def _number(value: float, target: Target) -> str:
    return f"{value:,.4g} {target.unit}".rstrip() if value < 10_000 else f"{value:,.0f} {target.unit}".rstrip()


def _notes(sections: Sections) -> list[str]:
    """What was measured, and where."""
    lines = []
    for name in dict.fromkeys(target.section for target in TARGETS.values()):
        if told := sections.get(name):
            about = told["machine"]
            where = f"{about['cpu']}, load {about['load_average']:g} when it began"
            lines.append(f"- `{name}`: {told['what']}{_besides(told)}. {where}.")
    return lines


def _besides(told: Mapping[str, Any]) -> str:
    """Processor time, which others on the machine do not change."""
    said = [f"{what} {told[key]:.1f} s" for key, what in _CPU.items() if key in told]
    return f"; processor time: {', '.join(said)}" if said else ""
