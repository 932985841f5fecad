"""A bundle and its reference by a benchmark whose data are at hand: both scores, their paired difference, intervals.

The same clips, protocol and vocabulary for both; features of each are kept as `lavila-fast eval` keeps them, so that
the next comparison only looks at what has changed. Where a protocol would hide the engine behind something else, it
gives way: sentences are greedy, not drawn, and embeddings are of unit length, as a bundle's always are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavila_fast.bundle.manifest import Bundle
from lavila_fast.clip_model import bundle_tokenizer
from lavila_fast.errors import InputError
from lavila_fast.exams.answers import Options
from lavila_fast.exams.benchmarks import find_benchmark
from lavila_fast.exams.compare import Comparison, compare
from lavila_fast.exams.examinees import ModelChoice
from lavila_fast.exams.figures import IN_POINTS, NAMES
from lavila_fast.exams.result import Result
from lavila_fast.exams.run import evaluate
from lavila_fast.export.parity.limits import Check, Limits, Section

_SAME_FOR_BOTH: Mapping[str, dict[str, Any]] = {"narration": {"temperature": 0.0}, "ego_mcq": {"normalised": True}}


@dataclass(frozen=True)
class BenchmarkTask:
    """A benchmark, and where its data lie.

    Attributes:
        name: Of the benchmark.
        data: Its folder.
        features: Folder where features are kept.
        videos: Folder of its videos, where it is another one than usual.
        limit: Only so many clips or questions, the first ones.
        most_missing: Share of clips whose videos may be missing.
    """

    name: str
    data: Path
    features: Path
    videos: Path | None = None
    limit: int | None = None
    most_missing: float = 0.0


@dataclass(frozen=True)
class TaskScores:
    """Scores of both, in one engine.

    Attributes:
        engine: What ran the bundle.
        precision: The limits' name.
        protocol: Its name and frames, in words.
        comparison: Figures, differences, intervals.
        checks: The verdict's lines.
    """

    engine: str
    precision: str
    protocol: str
    comparison: Comparison
    checks: list[Check]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.comparison.benchmark} in {self.engine}, {self.precision}"


def kind_asked(task: BenchmarkTask, bundle: Bundle, references: Mapping[str, Path]) -> str:
    """Kind of the model that a benchmark examines: one that the bundle holds and that has a reference.

    Raises:
        InputError: there is none.
    """
    kinds = find_benchmark(task.name).kinds
    found = next((kind for kind in kinds if kind in bundle.models and kind in references), None)
    if found is None:
        held = " and ".join(sorted(set(bundle.models) & set(references))) or "nothing"
        raise InputError(
            f"{bundle.folder}: {task.name} asks for a {' or a '.join(kinds)}, but there is {held} to compare; give "
            "its checkpoint with --reference or --dual-reference"
        )
    return found


def reference_scores(
    task: BenchmarkTask,
    bundle: Bundle,
    references: Mapping[str, Path],
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Examine the reference: what is wrong with the benchmark's folder is said here, before anything else is compared.

    Args:
        task: Which benchmark.
        bundle: An open bundle.
        references: Checkpoints by kind.
        threads: Of engines; None: all cores.
        say: Told what is found out on the way.

    Raises:
        InputError: see `kind_asked` and `exams.run.evaluate`.
        LavilaError: too many videos are missing.
    """
    kind = kind_asked(task, bundle, references)
    words = None if kind == "classifier" else bundle_tokenizer(bundle, kind)[0]
    choice = ModelChoice(str(references[kind]), "torch", threads, words)
    return evaluate(task.name, choice, task.data, _options(task, bundle, kind), say)


def task_scores(
    task: BenchmarkTask,
    bundle: Bundle,
    before: Result,
    sections: Sequence[Section],
    limits: Callable[[str], Limits],
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[TaskScores]:
    """Examine the bundle in every engine of its sections; arguments and errors as of `reference_scores`.

    Args:
        task: Which benchmark.
        bundle: An open bundle.
        before: The reference's result.
        sections: What was compared before.
        limits: What passes, by a section's precision.
        threads: Of engines; None: all cores.
        say: Told what is found out on the way.
    """
    kind = before.model["kind"]
    options = _options(task, bundle, kind)
    for section in (one for one in sections if one.kind == kind):
        after = evaluate(task.name, ModelChoice(str(bundle.folder), section.engine, threads), task.data, options, say)
        found = compare(before, after)
        frames = f"{after.protocol['name']}, {after.protocol['frames']} frames"
        checks = list(_checks(found, limits(section.precision)))
        yield TaskScores(section.engine, section.precision, frames, found, checks)


def _options(task: BenchmarkTask, bundle: Bundle, kind: str) -> Options:
    changes = dict(_SAME_FOR_BOTH.get(task.name, {}))
    if "frames" in find_benchmark(task.name).options:
        changes["frames"] = bundle.models[kind].vision.frames
    both = len(find_benchmark(task.name).kinds) > 1
    protocol = None if not both else "fine-tuned" if kind == "classifier" else "zero-shot"
    return Options(
        task.features,
        protocol,
        changes,
        videos=task.videos,
        limit=task.limit,
        workers=1,
        most_missing=task.most_missing,
    )


def _checks(found: Comparison, limits: Limits) -> Iterator[Check]:
    for one in found.differences:
        if one.name in IN_POINTS:
            what = f"{found.benchmark}, {NAMES[one.name]}, points lost"
            yield Check(what, -one.change, limits.points)
