"""What a comparison found, as values, as JSON in the bundle, and (see `parity_page`) as a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.manifest import WAY_OUT, Bundle
from lavila_fast.evaluate.clips import ClipSource
from lavila_fast.export.parity.limits import Check, Section
from lavila_fast.export.parity.tasks import TaskScores
from lavila_fast.files import write_json, write_text
from lavila_fast.machine import available_cpus, processor

JSON, PAGE = "parity.json", "parity.html"


@dataclass
class Report:
    """Everything that was found.

    Attributes:
        about: Bundle, references, clips, machine, versions, when and how long.
        sections: One for each model and engine.
        left_out: Models of the bundle that were not compared, and why.
        tasks: Scores by a benchmark, one for each engine.
        pictures: Frames (T, H, W, 3) uint8 of the clips among the examples, by number; only the page shows them.
    """

    about: dict[str, Any]
    sections: list[Section]
    left_out: dict[str, str] = field(default_factory=dict)
    tasks: list[TaskScores] = field(default_factory=list)
    pictures: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``pass``, ``fail``, or ``not run`` where nothing here can run the bundle."""
        return ("fail" if self.failures else "pass") if self.sections else "not run"

    @property
    def failures(self) -> list[str]:
        """One line for each limit that does not hold."""
        return [f"{title}: {check}" for title, checks in self.checks.items() for check in checks if not check.ok]

    @property
    def checks(self) -> dict[str, list[Check]]:
        """The verdict's lines, under what they are about."""
        sections = {section.title: section.checks for section in self.sections}
        return sections | {task.title: task.checks for task in self.tasks}

    @property
    def passed(self) -> bool:
        """Whether something was compared and every limit holds."""
        return self.verdict == "pass"

    def to_dict(self) -> dict[str, Any]:
        """What `parity.json` says."""
        rows, tasks = ([_with_checks(one) for one in some] for some in (self.sections, self.tasks))
        return {
            "verdict": self.verdict,
            "failures": self.failures,
            **self.about,
            "sections": rows,
            "tasks": tasks,
            "left_out": self.left_out,
        }

    def summary(self) -> dict[str, Any]:
        """The few lines that `bundle.json` carries."""
        return {
            "verdict": self.verdict,
            "clips": self.about["clips"],
            "sections": {title: {c.what: [c.found, c.limit] for c in checks} for title, checks in self.checks.items()},
            "report": JSON,
        }


def _with_checks(one: Section | TaskScores) -> dict[str, Any]:
    return {**asdict(one), "checks": [{**asdict(check), "ok": check.ok} for check in one.checks]}


def about(
    bundle: Bundle, clips: ClipSource, count: int, threads: int | None, references: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """Bundle, references, clips, machine, versions and date of a comparison of `count` clips that took `seconds`."""
    return {
        "bundle": {
            "name": bundle.name,
            "target": bundle.target,
            "precision": bundle.precision,
            "bytes": sum(path.stat().st_size for path in bundle.folder.iterdir() if path.name not in (JSON, PAGE)),
            "graphs": {name: digest for name, digest in bundle.files.items() if name.endswith((".onnx", WEIGHTS))},
        },
        "references": dict(references),
        "clips": {"source": clips.name, "count": count},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": threads or available_cpus()},
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("lavila-fast", "torch", "onnxruntime", "numpy")},
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def write_report(report: Report, bundle: Bundle, page: Path | None = None, with_page: bool = True) -> Path:
    """Write `parity.json` into the bundle and the page beside it (or to `page`); ``bundle.json`` is made to fit.

    Returns:
        Where the page is, or would be.

    Raises:
        StorageError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    from lavila_fast.export.parity.page import render

    page = page or bundle.folder / PAGE
    html = render(report) if with_page else ""
    write_json(bundle.folder / JSON, report.to_dict(), WAY_OUT)
    if with_page:
        write_text(page, html, WAY_OUT)
    replace(bundle, parity={**bundle.parity, **report.summary()}).save()
    return page
