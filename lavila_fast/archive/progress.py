"""How far it is, on standard error: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from lavila_fast.archive.stages import Stages
from lavila_fast.shown import shown

_BAR = "{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} clips, {rate_noinv_fmt}{postfix}, {remaining} left"
LINE_SECONDS = 30.0


class Progress:
    """Counts clips and seconds of video.

    Attributes:
        clips: Narrated.
        video_seconds: Of video that those stand for.
        stages: Where the run's time goes.
    """

    def __init__(self, quiet: bool, bar: bool) -> None:
        """`quiet` shows nothing but errors; without `bar` there are only lines."""
        self.clips, self.video_seconds, self._begun = 0, 0.0, time.monotonic()
        self._quiet, self._said, self.stages = quiet, self._begun, Stages()
        show = bar and not quiet and sys.stderr.isatty()
        self._bar = tqdm(bar_format=_BAR, unit=" clips", total=0, mininterval=0.5, file=sys.stderr) if show else None

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    @property
    def speed(self) -> float:
        """Seconds of video a second."""
        return self.video_seconds / max(self.elapsed, 1e-3)

    def advance(self, seconds: float, total: int) -> None:
        """A clip is done that stands for `seconds` of video, out of `total` clips as far as is known."""
        self.clips += 1
        self.video_seconds += seconds
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(f"{self.speed:.1f}x real time", refresh=False)
            self._bar.update()
        elif not self._quiet and time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            rate = self.clips / self.elapsed
            left = tqdm.format_interval((total - self.clips) / rate)
            self.say(f"{self.clips}/{total} clips, {rate:.2f} clips/s, {self.speed:.1f}x real time, {left} left")

    def say(self, line: str) -> None:
        """A line that does not disturb the bar."""
        line = shown(line)
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
