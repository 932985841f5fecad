"""Subtasks for robots' data sets in LeRobot's manner: which pictures of which episode show what.

An episode's number is that in its file's name, such as ``episode_000012.mp4``; videos without one are numbered in the
order they come. A picture's number counts from the video's begin at its own rate.

    rows = pandas.read_json("subtasks.jsonl", lines=True)  # episode_index, from_frame, to_frame, subtask, …
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from lavila_fast.archive.formats.markers import USUAL_RATE, picture
from lavila_fast.archive.formats.writer import Writer, json_line
from lavila_fast.records import Narration

_EPISODE = re.compile(r"episode[_-]?0*(\d{1,12})$")


class Subtasks(Writer):
    """One JSON object a sentence: episode_index, from_frame, to_frame (the first that is out), seconds, subtask."""

    def __init__(self) -> None:
        self._others: dict[str, int] = {}

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        return b"".join(json_line(self._values(row)) for row in rows)

    def _values(self, row: Narration) -> dict[str, Any]:
        rate = self.videos.rate(row.video) or USUAL_RATE
        begin = picture(row.start, rate)
        return {
            "episode_index": self._episode(row.video),
            "from_frame": begin,
            "to_frame": max(picture(row.end, rate), begin + 1),
            "from_timestamp": row.start,
            "to_timestamp": row.end,
            "subtask": row.text,
            "sample": row.sample,
            "video": row.video,
        }

    def _episode(self, video: str) -> int:
        if found := _EPISODE.search(PurePath(video).stem):
            return int(found[1])
        return self._others.setdefault(video, len(self._others))
