"""Clips a second of `lavila-fast eval`'s video part, from files, against the bare engine on frames that lie ready.

EPIC-KITCHENS-100's layout, its films 288 pixels high and coded by x264 with its defaults, and again as `prepare` codes
films; clips as long and as dense as the retrieval benchmark's; a dual encoder of TimeSformer-B with random weights in
INT8 on the native engine. Both take turns in one run, medians count, and both give the same embeddings to the bit.
A reader's process takes a second to start and half a second to end, which thousands of clips do not feel: speed is
counted from the end of the first batch to the end of the last, and the whole beside.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.bench.dual import MODEL, int8_arrays, random_model
from lavila_fast.bench.eval_nano import EK100_HEAD, SENTENCE_HEAD, time_stamp, write_csv
from lavila_fast.bench.films import CodedFilm, made
from lavila_fast.bench.sections import PREPARED_FILES
from lavila_fast.bench.timing import cores
from lavila_fast.bench.training.loader import CHUNK, PREPARED
from lavila_fast.config import DualEncoderConfig
from lavila_fast.download import cache_dir
from lavila_fast.engines.host.native_embed import NativeDualEncoder
from lavila_fast.errors import LavilaError
from lavila_fast.exams.annotations import open_ek100_mir
from lavila_fast.exams.answers import Options, embedder, fill
from lavila_fast.exams.data_folder import DataFolder
from lavila_fast.exams.features import FeatureStore
from lavila_fast.exams.protocols import find_protocol
from lavila_fast.exams.watch import Watcher, watched
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.presets import config_for

CLIP_SECONDS, GAP_SECONDS = 3.7, 0.4  # of the retrieval benchmark's clips, on average; from one's end to the next


@dataclass(frozen=True)
class EvalCase:
    """What is examined.

    Attributes:
        clips: How many.
        films: Of how many films.
        batch: Clips that the engine is given together.
        repeats: Of each way.
        film: How films are coded.
        config: The model; None: TimeSformer-B.
    """

    clips: int = 96
    films: int = 12
    batch: int = 8
    repeats: int = 3
    film: CodedFilm = CHUNK
    config: DualEncoderConfig | None = None


@dataclass
class _Timed:
    """The engine, and when its batches began and ended."""

    runtime: NativeDualEncoder
    ends: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def video(self, clips: F32) -> F32:
        """Embeddings of clips."""
        began = time.perf_counter()
        found = self.runtime.video(clips)
        self.ends.append(time.perf_counter())
        self.busy.append(self.ends[-1] - began)
        return found


@dataclass(frozen=True)
class _Turn:
    """One way, once.

    Attributes:
        rate: Clips a second between the ends of the first batch and of the last.
        seconds: Of all of it.
        cpu: Seconds of processors, of this process and those it started.
        waited: Share of the time between those ends in which the engine had nothing to do.
    """

    rate: float
    seconds: float
    cpu: float
    waited: float


def eval_section(case: EvalCase | None = None, threads: int | None = None) -> dict[str, Any]:
    """Figures of films with x264's defaults, and of films as `prepare` codes them."""
    case = case or EvalCase()
    prepared = figures(replace(case, film=PREPARED), threads)
    return {**figures(case, threads), **{f"{PREPARED_FILES}{name}": value for name, value in prepared.items()}}


def figures(case: EvalCase, threads: int | None = None) -> dict[str, Any]:
    """Both ways in turns, and the ratio of their speeds."""
    threads = threads or cores()
    config = case.config or config_for(MODEL)
    assert isinstance(config, DualEncoderConfig)
    runtime = NativeDualEncoder.from_tensors(int8_arrays(random_model(DualEncoder, config)), config, threads)
    with tempfile.TemporaryDirectory() as name:
        root = lay_out(case, Path(name) / "EK100")
        exam = open_ek100_mir(DataFolder(root), find_protocol("ek100_mir", "zero-shot", classifier=False))
        protocol = find_protocol("ek100_mir", None, classifier=False).changed(frames=config.vision.frames)
        watcher = Watcher(exam.clips, exam.library, config.vision, protocol)
        order = sorted(range(len(exam.ids)), key=lambda i: exam.ids[i])
        ready = np.concatenate([one.video for one in watched(watcher, order, 0) if one.video is not None])
        batches = [ready[at : at + case.batch] for at in range(0, len(ready), case.batch)]
        runtime.video(batches[0][:1])  # warms up
        turns: dict[str, list[_Turn]] = {"bare": [], "eval": []}
        for turn in range(case.repeats):
            plain, bare = _bare(runtime, batches)
            turns["bare"].append(bare)
            store = FeatureStore(Path(name) / f"features{turn}", {"benchmark": "ek100_mir"})
            turns["eval"].append(_examined(runtime, store, exam, watcher, case.batch))
            if not np.array_equal(store.take([exam.ids[i] for i in order])[:, 0], plain):
                raise LavilaError("eval and the bare engine give different embeddings: nothing to compare")
    rates = {way: statistics.median(one.rate for one in some) for way, some in turns.items()}
    cpu = {way: statistics.median(one.cpu for one in some) for way, some in turns.items()}
    return {
        "what": f"{MODEL} in INT8, random weights, {threads} threads and a reader; {len(ready)} clips of "
        f"{case.films} films, {case.film.what}, {case.film.size[0]}×{case.film.size[1]}; {case.repeats} turns",
        "eval_clips_per_s": round(rates["eval"], 4),
        "bare_clips_per_s": round(rates["bare"], 4),
        "eval_vs_bare_engine": round(rates["eval"] / rates["bare"], 4),
        "eval_vs_bare_engine_cpu_time": round(cpu["bare"] / cpu["eval"], 4),
        "eval_vs_bare_engine_with_start": round(
            statistics.median(one.seconds for one in turns["bare"])
            / statistics.median(one.seconds for one in turns["eval"]),
            4,
        ),
        "engine_waited_share": round(statistics.median(one.waited for one in turns["eval"]), 4),
    }


def lay_out(case: EvalCase, root: Path) -> Path:
    """A miniature of EPIC-KITCHENS-100's retrieval benchmark: annotations, and films that are copies of one."""
    each = -(-case.clips // case.films)
    every = CLIP_SECONDS + GAP_SECONDS
    film = made(case.film, cache_dir() / "bench-films", int(each * every) + 2)
    rows = []
    for i in range(case.clips):
        video = f"P01_{i // each + 1:02}"
        start = i % each * every
        times = time_stamp(start), time_stamp(start + CLIP_SECONDS)
        rows.append((f"{video}_{i % each}", "P01", video, *times, f"do thing {i}", i % 97, i % 300, f"[{i % 300}]"))
        path = root / "video_ht256px" / "P01" / f"{video}.MP4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            shutil.copyfile(film, path)
    base = root / "epic-kitchens-100-annotations" / "retrieval_annotations"
    write_csv(base / "EPIC_100_retrieval_test.csv", EK100_HEAD, rows)
    sentences = [(row[0], row[5]) for row in rows]
    write_csv(base / "EPIC_100_retrieval_test_sentence.csv", SENTENCE_HEAD, sentences)
    return root


def _bare(runtime: NativeDualEncoder, batches: Sequence[F32]) -> tuple[F32, _Turn]:
    """The engine on frames that lie ready."""
    engine, began, cpu = _Timed(runtime), time.perf_counter(), _cpu()
    found = np.concatenate([engine.video(batch) for batch in batches])
    return found, _turn(engine, time.perf_counter() - began, _cpu() - cpu, len(found), len(batches[0]))


def _examined(runtime: NativeDualEncoder, store: FeatureStore, exam: Any, watcher: Watcher, batch: int) -> _Turn:
    """What `eval` does between annotations and scores, at its own defaults."""
    options, engine = Options(store.folder, workers=1, batch=batch), _Timed(runtime)
    examinee: Any = engine
    began, cpu = time.perf_counter(), _cpu()
    missing = fill(store, exam, watcher, embedder(examinee, batch), options)
    assert not missing
    return _turn(engine, time.perf_counter() - began, _cpu() - cpu, len(store), batch)


def _turn(engine: _Timed, seconds: float, cpu: float, clips: int, first: int) -> _Turn:
    steady = engine.ends[-1] - engine.ends[0]
    return _Turn((clips - first) / steady, seconds, cpu, 1 - sum(engine.busy[1:]) / steady)


def _cpu() -> float:
    """Seconds of processors so far, of this process and of those that it started and that have ended."""
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system
