"""How far it is, on standard error: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from lavila_fast import log
from lavila_fast.archive.accounts.stages import Stages
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
        bar &= not log.is_json()
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
            seconds = (total - self.clips) / rate
            left, speed = tqdm.format_interval(seconds), f"{self.speed:.1f}x real time"
            known = {"clips": self.clips, "total": total, "clips_per_second": rate, "times_real_time": self.speed}
            line = f"{self.clips}/{total} clips, {rate:.2f} clips/s, {speed}, {left} left"
            self.say(line, event="lavila.run.progress", attributes={**known, "seconds_left": seconds})

    def say(
        self,
        line: str,
        severity: str = "INFO",
        event: str = log.MESSAGE,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """A line that does not disturb the bar; see `log.say`."""
        if self._bar is None:
            log.say(line, severity, event, attributes)
        else:
            self._bar.write(shown(f"error: {line}" if severity == "ERROR" else line), file=sys.stderr)

    def note(self, line: str, event: str, attributes: Mapping[str, Any]) -> None:
        """What only a log wants to know."""
        if log.is_json() and not self._quiet:
            log.say(line, "INFO", event, attributes)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
