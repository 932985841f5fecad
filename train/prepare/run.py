"""A run over many raw videos: what is there already, what is made, what could not be.

    with Run.begin(layout, data, sources, out, how) as run:
        for event in run.events(workers=4): ...
    sys.exit(run.exit_code)

What is finished stays, whatever ends a run; the next one makes the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lavila_fast.errors import InputError, StorageError, VideoError
from lavila_fast.files import locked, storage_error
from lavila_fast.train.prepare.crew import Ended, run_crew
from lavila_fast.train.prepare.layouts import Layout
from lavila_fast.train.prepare.manifest import MANIFEST, Made, Manifest, write_bad
from lavila_fast.train.prepare.video import How, Task
from lavila_fast.video.content import stamp_of


@dataclass
class Run:
    """One run.

    Attributes:
        out: The output folder.
        manifest: What is in it.
        tasks: Videos that are not through.
        videos: How many there are in all.
        ready: How many of them were through before; `through`: are now.
        bad: Sources that failed, and why.
        made: Files, and their `seconds`.
    """

    out: Path
    manifest: Manifest
    tasks: list[Task] = field(default_factory=list)
    videos: int = 0
    ready: int = 0
    through: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0
    seconds: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def begin(cls, layout: Layout, data: Path, sources: Sequence[Path], out: Path, how: How) -> Iterator[Run]:
        """Look at what there is, keep others from the folder, and leave the lists in order at the end.

        Raises:
            InputError: what is there was made otherwise.
            StorageError: the folder cannot be written, or somebody else writes it.
        """
        with storage_error(out):
            out.mkdir(parents=True, exist_ok=True)
        taken = StorageError(f"{out}: another lavila-fast prepare is writing there; wait for it or give another -o")
        with contextlib.ExitStack() as held:
            with storage_error(out):
                held.enter_context(locked(out / MANIFEST, taken))
            run = cls(out, Manifest(out))
            held.callback(run.manifest.close)
            run._plan(layout, data, sources, how)
            yield run
            run.manifest.settle()
            write_bad(out, run.bad)

    def _plan(self, layout: Layout, data: Path, sources: Sequence[Path], how: How) -> None:
        other = next((row.how for row in self.manifest.rows.values() if row.how != how.words), None)
        if other:
            raise InputError(f"{self.out}: holds videos of {other}, not of {how.words}; give another -o")
        self.videos = len(sources)
        places: dict[str, str] = {}
        for source in sources:
            name = Path(os.path.relpath(source, data)).as_posix()
            place = layout.place(Path(name))
            first = places.setdefault(place.casefold(), name)
            if first != name:
                what = f"would become {place}, which {first} is"
                self.bad.append((name, str(VideoError(source, what, "give one of them another name"))))
                continue
            task = Task(source, name, self.out, place, how, self._there(self.manifest.of(place), how.chunk))
            try:
                self._add(task)
            except VideoError as error:
                self.bad.append((name, str(error)))

    def _there(self, rows: Sequence[Made], chunk: int) -> tuple[Made, ...]:
        """The files of a video that are as the table says, from the first on without a gap."""
        found: list[Made] = []
        for row in sorted(rows, key=lambda one: one.start):
            with contextlib.suppress(OSError):
                if row.start == len(found) * chunk and (self.out / row.file).stat().st_size == row.size:
                    found.append(row)
        return tuple(found)

    def _add(self, task: Task) -> None:
        stamp = stamp_of(task.source)
        same = all((row.source_size, row.source_mtime) == (stamp.size, stamp.mtime) for row in task.done)
        if task.done and task.done[-1].last and same:
            self.ready, self.through = self.ready + 1, self.through + 1
        else:
            self.tasks.append(task)

    def events(self, workers: int) -> Generator[Made | Ended, None, None]:
        """Prepare what is left; each file as it is made, and the end of each video.

        Raises:
            StorageError: nothing more can be written.
        """
        with contextlib.closing(run_crew(self.tasks, workers)) as crew:
            for event in crew:
                if isinstance(event, Made):
                    self._note(event)
                elif event.fatal:
                    raise StorageError(event.failure)
                elif event.failure:
                    self.bad.append((event.task.name, event.failure))
                else:
                    self.through += 1
                yield event

    def _note(self, made: Made) -> None:
        """A file is there; what was made of an earlier version of its video goes."""
        if self._plain(self.manifest.rows.get(made.file)) != self._plain(made):
            self.made, self.seconds = self.made + 1, self.seconds + made.seconds
        gone = [
            row.file
            for row in self.manifest.of(made.place)
            if row.source_id != made.source_id or (made.last and row.start > made.start)
        ]
        self.manifest.put(made)
        for file in set(gone) - {made.file}:
            self.manifest.drop(file)
            with storage_error(self.out / file):
                (self.out / file).unlink(missing_ok=True)

    @staticmethod
    def _plain(row: Made | None) -> Made | None:
        """What does not change when a file is looked at again."""
        return row and replace(row, last=False, source_mtime=0)

    @property
    def exit_code(self) -> int:
        """0; 1 if a video failed, 3 if all did."""
        return 0 if not self.bad else 1 if self.through else 3
