"""An evaluation from end to end: annotations → clips → what the model gives → scores, beside what others report.

result = evaluate("ek100_mir", ModelChoice("dual.pth"), Path("EK100"), Options(features=Path("features")))
result.scores["map"]
result.write(Path("ek100_mir.json"))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lavila_fast.errors import InputError, VideoError
from lavila_fast.exams.answers import Options, Say, fill, look_for_videos
from lavila_fast.exams.benchmarks import check_changes, find_benchmark
from lavila_fast.exams.data_folder import DataFolder
from lavila_fast.exams.exam import Exam, Seen
from lavila_fast.exams.examinees import Examinee, ModelChoice, open_examinee
from lavila_fast.exams.features import FeatureStore
from lavila_fast.exams.figures import FIGURES
from lavila_fast.exams.narrators import NarratorExaminee, open_narrator
from lavila_fast.exams.processes import Work, answer_of, bare, helped, shared_out, threads_each
from lavila_fast.exams.protocols import PROTOCOLS, Protocol, find_protocol
from lavila_fast.exams.published import published
from lavila_fast.exams.result import Result
from lavila_fast.exams.sentence_exams import Narrations
from lavila_fast.exams.watch import Watcher
from lavila_fast.shown import many

Model = Examinee | NarratorExaminee


def evaluate(name: str, choice: ModelChoice, data: Path, options: Options, say: Say = lambda line: None) -> Result:
    """Examine a model.

    Args:
        name: Of the benchmark.
        choice: The model.
        data: The benchmark's folder.
        options: How.
        say: Told what is found out on the way, a line at a time.

    Raises:
        InputError: annotations, model and options do not fit together.
        LavilaError: too many videos are missing; what was found so far stays in the folder of features.
    """
    begun = time.monotonic()
    row = find_benchmark(name)
    check_changes(name, options.changes)
    first = find_protocol(name, options.protocol, classifier=False)
    exam = _opened(row.open, data, options, first)
    _tell(exam, say)
    choice = threads_each(choice, options.processes)
    model: Model
    if row.kinds == ("narrator",):
        model = open_narrator(choice)
    else:
        model = open_examinee(choice, row.kinds_for(options.protocol), _frames_of(name, options))
    protocol = _protocol(name, model, options)
    if protocol != first:
        exam = _opened(row.open, data, options, protocol)
    exam.check(model.heads)
    say(_described(protocol, model, exam))
    about = _about(name, model, protocol, exam)
    store = FeatureStore(options.features, about)
    for file in look_for_videos(exam, store, options):
        say(f"{file}: missing")
    missing = _examined(store, exam, model, protocol, choice, about, options, say)
    kept = _without(exam, missing)
    seen = Seen(store.take(kept.ids), model.heads, getattr(model, "text", None))
    before = len(kept.facts.notes)
    tables = kept.tables(protocol, seen)
    for line in kept.facts.notes[before:]:  # of what was left out
        say(line)
    return _result(name, model, protocol, kept, tables, missing, options, begun)


def _examined(
    store: FeatureStore,
    exam: Exam,
    model: Model,
    protocol: Protocol,
    choice: ModelChoice,
    about: dict[str, Any],
    options: Options,
    say: Say,
) -> dict[str, str]:
    """Fill the store, alone or with others; why clips cannot be read."""
    known = sum(name in store for name in exam.ids)
    if known:
        say(f"{many(known, 'clip')} known from an earlier run ({store.folder})")
    watcher = Watcher(exam.clips, exam.library, model.vision, protocol)
    answer = answer_of(model, exam, protocol, options.batch)
    todo = [i for i, name in enumerate(exam.ids) if name not in store]
    own, *others = shared_out(exam.videos, todo, options.processes)
    if any(others):
        work = Work(bare(exam), watcher, choice, model.kind, protocol, about, options)
        with helped(work, others, say) as tally:
            fill(store, exam, watcher, answer, replace(options, seen=tally), own)
        store.look()
    return fill(store, exam, watcher, answer, options)


def reopened(result: Result, data: Path, videos: Path | None = None) -> Exam:
    """The exam that a result is of, to look at its clips."""
    return find_benchmark(result.benchmark).open(DataFolder(data, videos), Protocol(**result.protocol))


def _opened(opener: Callable[[DataFolder, Protocol], Exam], data: Path, options: Options, protocol: Protocol) -> Exam:
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; --data is to be the benchmark's folder (docs/EVALUATION.md)")
    try:
        exam = opener(DataFolder(data, options.videos), protocol)
    except OSError as error:
        raise InputError(f"{error.filename or data}: cannot be read ({error.strerror or error})") from error
    if not exam.ids:
        raise InputError(f"{data}: its annotations hold no clips; fetch them again")
    return exam if options.limit is None else exam.first(options.limit)


def _tell(exam: Exam, say: Say) -> None:
    for name, facts in exam.facts.files.items():
        known = " (as published)" if facts.get("published") else ""
        say(f"{name}: {facts['rows']:,} rows{known}")
    for line in (*exam.facts.notes, *exam.facts.odd):
        say(line)


def _frames_of(name: str, options: Options) -> Callable[[str, bool], int | None]:
    """How many frames a model is asked for: those given, else the protocol's; a bundle may have its own."""

    def frames(kind: str, bundle: bool) -> int | None:
        if "frames" in options.changes or bundle:
            given: int | None = options.changes.get("frames")
            return given
        return find_protocol(name, options.protocol, kind == "classifier").frames

    return frames


def _protocol(name: str, model: Model, options: Options) -> Protocol:
    found = find_protocol(name, options.protocol, model.kind == "classifier").changed(**options.changes)
    if options.changes.get("frames", model.vision.frames) != model.vision.frames:
        raise InputError(f"{model.identity['name']} takes {model.vision.frames} frames, not {found.frames}")
    return replace(found, frames=model.vision.frames)


def _described(protocol: Protocol, model: Model, exam: Exam) -> str:
    views = f", {protocol.clips} clips × {protocol.crops} crops" if protocol.clips * protocol.crops > 1 else ""
    how = "from equal parts of the whole video" if protocol.sparse else "a clip"
    return (
        f"{protocol.name}: {many(len(exam.ids), 'clip')}, {protocol.frames} frames {how}{views}, "
        f"{model.vision.img} pixels; {model.kind} {model.identity['name']} on {model.identity['engine']}"
    )


def _about(name: str, model: Model, protocol: Protocol, exam: Exam) -> dict[str, Any]:
    """What features depend on."""
    about = {"benchmark": name, "model": model.identity, "seen": protocol.seen()}
    about["videos"] = str(exam.library.root.resolve())
    if isinstance(exam, Narrations):  # what people said is part of what a narrator is asked
        about |= {"written": protocol.written(), "files": exam.facts.files}
    return about


def _without(exam: Exam, missing: dict[str, str]) -> Exam:
    if not missing:
        return exam
    kept = [i for i, name in enumerate(exam.ids) if name not in missing]
    if not kept:
        raise VideoError(exam.library.root, "none of the clips can be read", next(iter(missing.values())))
    return exam.of(kept)


def _result(
    name: str,
    model: Model,
    protocol: Protocol,
    exam: Exam,
    tables: dict[str, dict[str, Any]],
    missing: dict[str, str],
    options: Options,
    begun: float,
) -> Result:
    odd = reasons(name, protocol, model, exam, missing, options)
    data = {
        "clips": len(exam.ids),
        "missing": missing,
        "limit": options.limit,
        "videos": str(exam.library.root),
        "classes": [some[0] for some in getattr(exam, "names", ())],
        **asdict(exam.facts),
    }
    rows = [
        {**asdict(one), "why_not": _why_not(name, one.frames, protocol, odd)} for one in published(name, protocol.name)
    ]
    told = {"kind": model.kind, **model.identity, "img": model.vision.img, "frames": model.vision.frames}
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - begun, 1),
        "versions": versions(),
    }
    return Result(name, asdict(protocol), told, data, FIGURES[name](tables), tables, rows, about)


def reasons(
    name: str, protocol: Protocol, model: Model, exam: Exam, missing: dict[str, str], options: Options
) -> list[str]:
    """Why the figures cannot be compared with published ones; none of it is about the model's weights."""
    found = list(exam.facts.odd)
    if options.limit is not None:
        found.append(f"only the first {options.limit:,} were asked")
    if missing:
        found.append(f"missing: {many(len(missing), 'clip')}")
    zoo = replace(PROTOCOLS[name][protocol.name], frames=protocol.frames)
    found += protocol.differences(zoo)
    if not protocol.normalised and model.unit:
        found.append("the bundle's embeddings are of unit length, the published figure's are not")
    return found


def _why_not(name: str, frames: int | None, protocol: Protocol, odd: list[str]) -> list[str]:
    """Of a published row; figures of one that does not say how many frames are taken for the zoo's number."""
    wanted = frames or PROTOCOLS[name][protocol.name].frames
    other = [] if wanted == protocol.frames else [f"{protocol.frames} frames, published with {wanted}"]
    return [*other, *odd]


def versions() -> dict[str, str]:
    """Of what computed the figures."""
    found: dict[str, str] = {}
    for package in ("lavila-fast", "numpy", "onnxruntime", "torch", "av"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
