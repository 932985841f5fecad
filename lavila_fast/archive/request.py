"""What one command is asked to narrate, and the way from there to a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lavila_fast.archive.identity import LISTED, Identity, windows
from lavila_fast.archive.inputs import Found, find_clips, find_videos, under_earlier_names
from lavila_fast.archive.outputs import Files, Output, Sink, Stream, choose_output, open_journal
from lavila_fast.archive.plan import Windows
from lavila_fast.archive.progress import Progress
from lavila_fast.archive.run import Run, Summary
from lavila_fast.errors import InputError
from lavila_fast.generate.options import Options

if TYPE_CHECKING:
    from lavila_fast.narrator import Narrator


@dataclass(frozen=True)
class Request:
    """Everything but the model.

    Attributes:
        inputs: Files, folders, patterns; with `clip_list` one folder.
        options: How to write.
        clip_list: File that names the clips; None cuts whole videos into windows.
        output: A file, a folder, ``-`` or nothing.
        format: One of `formats.offered()`, or None to go by the suffix of `output`.
        clip_seconds: Length of a window; None takes the model's.
        stride_seconds: From one window's start to the next; None takes `clip_seconds`.
        batch: Clips narrated together.
        workers: Videos decoded at once.
        frame_times: Rows say when the frames that the model saw are shown.
        max_pixels: The most that a picture may have; None takes what is usual.
        overwrite: Forget what the output holds.
        prints_summary: Standard output is for the summary, so narrations go to a file.
        quiet: Only errors.
    """

    inputs: tuple[str, ...]
    options: Options
    clip_list: Path | None = None
    output: str | None = None
    format: str | None = None
    clip_seconds: float | None = None
    stride_seconds: float | None = None
    batch: int = 8
    workers: int = 1
    frame_times: bool = False
    max_pixels: int | None = None
    overwrite: bool = False
    prints_summary: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Check that windows are not asked for together with a list."""
        if self.clip_list and (self.clip_seconds or self.stride_seconds):
            name = "--clip-seconds" if self.clip_seconds else "--stride-seconds"
            raise InputError(f"{name}: --clips says where each clip begins and ends; leave one of the two out")

    def find(self) -> Found:
        """The videos and their clips.

        Raises:
            InputError: there are none.
        """
        found = find_clips(self.inputs, self.clip_list) if self.clip_list else find_videos(self.inputs)
        if self.max_pixels is None:
            return found
        jobs = [replace(job, source=replace(job.source, max_pixels=self.max_pixels)) for job in found.jobs]
        return replace(found, jobs=jobs)

    def choose_output(self, found: Found) -> Output:
        """Where the narrations of these videos go.

        Raises:
            InputError: output, format and number of videos do not fit each other.
        """
        one = len(self.inputs) == 1 and len(found.jobs) == 1 and found.jobs[0].source.path == Path(self.inputs[0])
        output = self._off_standard(choose_output(self.output, self.format, len(found.jobs), one))
        return output.with_frame_times() if self.frame_times else output

    def _off_standard(self, output: Output) -> Output:
        """The same, or a file where standard output is for the summary."""
        if not (self.prints_summary and output.kind == "stream" and output.path is None):
            return output
        if self.output == "-":
            raise InputError("--json and narrations cannot both be printed; give a file as --output")
        return choose_output("narrations.jsonl", None, 1, True)

    def run(self, narrator: Narrator, model: str, found: Found, output: Output) -> Summary:
        """Narrate `found` to `output`; `model` is the narrator's name for people.

        Raises:
            InputError: the output was begun by a run that is not the same.
            StorageError: it cannot be written; what was written before is whole.
        """
        clip = self.clip_seconds or narrator.clip_seconds
        stride = self.stride_seconds or clip
        sink: Sink
        if output.kind == "stream":
            sink = Stream(output, sys.stdout.buffer)
        else:
            identity = self._identity(narrator, model, windows(clip, stride))
            journal = open_journal(output, identity.settings(), self.options.samples, self.overwrite)
            found = under_earlier_names(found, journal.done)
            sink = Files(output, journal, [job.source.name for job in found.jobs])
        try:
            plan = Windows(clip, stride, sink, listed=bool(self.clip_list))
            progress = Progress(self.quiet, bar=not (output.kind == "stream" and sys.stdout.isatty()))
            return Run(narrator, found, sink, plan, progress, self.workers, self.batch).go(
                self.options, self.frame_times
            )
        finally:
            sink.release()

    def _identity(self, narrator: Narrator, model: str, clips: str) -> Identity:
        decoder = None if narrator.device == "cpu" else narrator.decoder  # a GPU's differ by a few levels
        clips = LISTED if self.clip_list else clips
        return Identity(model, narrator.fingerprint, self.options, clips, decoder)
