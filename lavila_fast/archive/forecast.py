"""How long an archive will take on this machine, and how much room: looked at by samples, measured in seconds.

    told = forecast(find_videos(["archive/"]), Request((), Narrating(Options())), narrator, "nano")
    told.hours, told.windows, told.seconds, told.row_bytes

Every file is asked for its size. Files are then opened in a random but fixed order until `LOOK_SECONDS` are up; how
long the rest are is told from their sizes. Speed is that of a run as it will be, over windows of those that were
opened.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from lavila_fast.archive.outputs import Output
from lavila_fast.archive.plan import windows_of
from lavila_fast.archive.request import Request
from lavila_fast.archive.sources.inputs import FoundInputs, Job
from lavila_fast.archive.windows.still import Still
from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Clip, Row
from lavila_fast.remote.path import Place
from lavila_fast.video.clips import window_count
from lavila_fast.video.content import stamp_of
from lavila_fast.video.sources import Extent, extent

if TYPE_CHECKING:
    from lavila_fast.clip_model import ClipModel

LOOK_SECONDS, TRY_SECONDS = 5.0, 10.0
_TRIED, _IN_A_ROW, _SHOWN = 16, 8, 20  # videos that are tried, windows of each, lines that are kept


@dataclass
class Forecast:
    """What is to be expected.

    Attributes:
        videos: Found, of `bytes`.
        looked_at: Videos that were opened; `exact`: all.
        hours: Of video.
        windows: To be narrated.
        tried: Windows that the speed comes from; 0: none could be.
        clips_per_second: Of a run here.
        decode_share: Of processor time, for reading and decoding.
        seconds: That the whole takes.
        row_bytes: That its rows take.
        still_share: Of the windows tried, in how many nothing moves; None: nobody asked, or none could be tried.
        still_seconds: That the whole takes if such windows are skipped; None likewise.
        unreadable: Videos of those looked at that cannot be read, and those of which not even the size can.
        lines: The first of these.
    """

    videos: int
    bytes: int = 0
    looked_at: int = 0
    exact: bool = False
    hours: float = 0.0
    windows: int = 0
    tried: int = 0
    clips_per_second: float = 0.0
    decode_share: float = 0.0
    seconds: float | None = None
    row_bytes: int | None = None
    still_share: float | None = None
    still_seconds: float | None = None
    unreadable: int = 0
    lines: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def refuse(self, line: str) -> None:
        """Count a video that cannot be read."""
        self.unreadable += 1
        if len(self.lines) < _SHOWN:
            self.lines.append(line)


@dataclass(frozen=True)
class _Known:
    job: Job
    seen: Extent
    size: int


def forecast(
    found: FoundInputs,
    request: Request,
    model: ClipModel,
    name: str,
    look_seconds: float = LOOK_SECONDS,
    try_seconds: float = TRY_SECONDS,
) -> Forecast:
    """Look at an archive.

    Args:
        found: Its videos.
        request: How they are to be narrated; with a `still` that scores, it is told what skipping would spare.
        model: That is to do it.
        name: What people call the model.
        look_seconds: For opening files; at least one is.
        try_seconds: For trying the model.

    Raises:
        InputError: no video can be read.
    """
    told = Forecast(len(found.jobs) + len(found.failed))
    for line in found.failed:
        told.refuse(line)
    sizes = dict(_sizes(found.jobs, told))
    known = _look([job for job in found.jobs if job.source.path in sizes], sizes, told, look_seconds)
    if not known:
        raise InputError(told.lines[0] if told.lines else "no video can be read; check the paths")
    lengths = request.lengths(model)
    _measure_length(known, sizes, told, *lengths)
    _try(known, replace(request, quiet=True), model, name, told, try_seconds)
    return told


def _sizes(jobs: Sequence[Job], told: Forecast) -> Iterator[tuple[Place, int]]:
    for job in jobs:
        try:
            size = stamp_of(job.source.path).size
        except VideoError as error:
            told.refuse(str(error))
            continue
        told.bytes += size
        yield job.source.path, size


def _look(jobs: list[Job], sizes: dict[Place, int], told: Forecast, seconds: float) -> list[_Known]:
    jobs = list(jobs)
    Random(0).shuffle(jobs)
    known: list[_Known] = []
    began = time.monotonic()
    for job in jobs:
        if known and time.monotonic() - began > seconds:
            break
        told.looked_at += 1
        try:
            known.append(_Known(job, extent(job.source), sizes[job.source.path]))
        except VideoError as error:
            told.refuse(str(error))
    told.exact = told.looked_at == len(jobs)
    return known


def _measure_length(
    known: Sequence[_Known], sizes: dict[Place, int], told: Forecast, clip: float, stride: float
) -> None:
    seconds = sum(end - begin for one in known for begin, end in one.job.stretches(one.seen))
    count = sum(_count(one, clip, stride) for one in known)
    size = sum(one.size for one in known)
    share = 1.0
    if not told.exact:  # what cannot be read counts among those that were opened, so their share is kept
        opened = len(known) / told.looked_at
        share = max(sum(sizes.values()) * opened / size, 1.0) if size else len(sizes) / told.looked_at
    told.hours, told.windows = seconds * share / 3600, round(count * share)


def _count(one: _Known, clip: float, stride: float) -> int:
    if one.job.ranges:
        return sum(1 for _ in windows_of(one.job, one.seen, clip, stride))
    return window_count(one.seen.end, clip, stride, one.seen.begin)


def _try(
    known: Sequence[_Known], request: Request, model: ClipModel, name: str, told: Forecast, seconds: float
) -> None:
    """Runs over a few windows, twice as many each time, until one has taken half the time there is."""
    lengths, count, began = request.lengths(model), 4, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lavila-fast-plan-") as folder:
        while True:
            jobs = list(_some(known, count, *lengths))
            output = Path(folder) / f"{count}.jsonl"
            place = Output("jsonl", "file", output, rows=request.work.kind)
            done = request.run(model, name, FoundInputs(jobs), place)
            if not done.clips:
                break
            rows = list(_rows(output, request))
            request = replace(request, hushed=(*request.hushed, *done.failed))  # each is said once
            told.tried, told.clips_per_second = done.clips, done.clips / done.seconds
            told.decode_share = min(done.decode_cpu / done.cpu, 1.0) if done.cpu else 0.0
            told.seconds = told.windows / told.clips_per_second
            told.row_bytes = round(_size(rows, request) / (done.clips + done.copied) * told.windows)
            every = sum(len(job.clips or ()) for job in jobs)
            if done.seconds > seconds / 2 or every < count or time.monotonic() - began > seconds:
                break
            count *= 2
        if told.tried and request.still:
            _try_still(request, model, name, told, jobs, rows, Path(folder))


def _rows(output: Path, request: Request) -> Iterator[Row]:
    with output.open("rb") as file:
        yield from (row for line in file if (row := request.work.kind.parse(line)) is not None)


def _size(rows: Sequence[Row], request: Request) -> int:
    """Bytes of rows as they are where nobody asks how much moves."""
    lines = request.work.kind.journal(compact=False)
    return sum(len(lines.clip([replace(row, motion=None)])) for row in rows)


def _try_still(
    request: Request, model: ClipModel, name: str, told: Forecast, jobs: list[Job], rows: Sequence[Row], folder: Path
) -> None:
    """See in how many of these windows nothing moves, and if in some, how long they take without them."""
    skips = Still(skips=True)
    told.still_share, told.still_seconds = sum(skips.refuses(row.motion) for row in rows) / len(rows), told.seconds
    if told.still_share:
        place = Output("jsonl", "file", folder / "still.jsonl", rows=request.work.kind)
        done = replace(request, still=skips).run(model, name, FoundInputs(jobs), place)
        told.still_seconds = told.windows * done.seconds / done.clips if done.clips else None


def _some(known: Sequence[_Known], count: int, clip: float, stride: float) -> Iterator[Job]:
    """So many windows, a few neighbouring ones of each of some videos, which are as a run meets them."""
    most = max(_IN_A_ROW, -(-count // _TRIED))
    for one in known:
        if count <= 0:
            return
        own = [Clip(one.job.source.name, *times) for times in windows_of(one.job, one.seen, clip, stride)]
        middle = max((len(own) - most) // 2, 0)
        clips = tuple(own[middle : middle + min(most, count)])
        count -= len(clips)
        if clips:
            yield replace(one.job, clips=clips, ranges=())
