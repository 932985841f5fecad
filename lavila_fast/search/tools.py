"""An index for agents: a server of the Model Context Protocol with the tools `search`, `moments` and `cut`.

    serve(Index.open(Path("archive.index")), clips=Path("clips"))      # over standard input and output

An agent names videos as a search shows them and gets times, sentences and scores. Where a folder for clips was given,
`cut` writes into it and nowhere else: only stretches of videos of the index, of bounded number and length, under names
that are made here. What an agent asks wrongly is told to it as a tool's error.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lavila_fast.errors import InputError, LavilaError, MissingExtraError
from lavila_fast.files import storage_error
from lavila_fast.remote.path import Place
from lavila_fast.search.cut import indexed
from lavila_fast.search.index import Index, Query
from lavila_fast.search.summary import summarize
from lavila_fast.video.cut import cut as cut_out
from lavila_fast.video.cut import ending_of

MOST_MOMENTS, MOST_WORDS = 50, 1000  # of an answer; characters of a query
MOST_CLIPS, MOST_SECONDS = 100, 300.0  # clips that a server cuts, and of each
ABOUT = (
    "Moments of a video archive, found by what they show. Scores are cosines; `sure` says whether anything stands out "
    "from the archive at large: where it does not, tell the user that there is no confident match."
)


@dataclass
class Tools:
    """What agents may ask; each method is a tool, and its docstring tells it to them.

    Attributes:
        index: What is searched.
        clips: The folder that `cut` writes to; None: nothing is cut.
        threads: Of the model.
    """

    index: Index
    clips: Path | None = None
    threads: int = 1
    _cut: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # one question at a time: tools run in threads

    def search(
        self,
        query: str,
        limit: int = 5,
        video: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> dict[str, Any]:
        """Find the moments of the archive that a sentence describes, best first.

        Args:
            query: A sentence such as "#C C cuts the onion", or words.
            limit: Moments, at most 50.
            video: Only in videos whose names contain this.
            since: Only in videos last changed on this day or later, YYYY-MM-DD.
            until: Only in videos last changed before this day, YYYY-MM-DD.
        """
        dates: dict[str, Any] = {name: _date(name, told) for name, told in (("since", since), ("until", until)) if told}
        asked = Query(_words(query), limit=_bounded("limit", limit), video=video, **dates)
        found = self._asked(asked)
        return {
            "sure": found.sure,
            "stands_out": found.stands_out,
            "moments": [_told(one) for one in found.moments],
        }

    def moments(self, query: str, video: str, most_seconds: float | None = None) -> dict[str, Any]:
        """Find all moments of one video that a sentence describes, in the order of the film.

        Args:
            query: A sentence such as "#C C cuts the onion", or words.
            video: Name of the video, as search shows it.
            most_seconds: How long the moments may be together; the best are kept.
        """
        if most_seconds is not None and not most_seconds > 0:
            raise InputError("most_seconds: give a number over 0")
        if not video:
            raise InputError("video: give a name as search shows it")
        self._embedded(asked := Query(_words(query), limit=MOST_MOMENTS, video=video))
        found = summarize(self.index, asked, most_seconds)
        return {
            "video": found.video,
            "sure": found.sure,
            "seconds": round(found.seconds, 3),
            "moments": [_told(one) for one in found.moments],
        }

    def cut(self, video: str, start: float, end: float) -> dict[str, Any]:
        """Cut a stretch of a video of the archive into a file of its own, and say where that is.

        Args:
            video: Name of the video, as search shows it.
            start: First second.
            end: Last second, at most 300 after the first.
        """
        if self.clips is None:
            raise InputError("nothing is cut here; start the server with --clips DIR")
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
            raise InputError("start and end: give seconds, the first before the last")
        if end - start > MOST_SECONDS:
            raise InputError(f"a clip is at most {MOST_SECONDS:g} seconds long; give an earlier end")
        source, length = self._source(video)
        if length is not None:
            if start >= length:
                raise InputError(f"{video[:200]}: ends at {length:g} s; give an earlier start")
            end = min(end, round(length, 3))
        path = self.clips / _name(video, start, end, source)
        if path.name not in self._cut and len(self._cut) >= MOST_CLIPS:
            raise InputError(f"this server has cut {MOST_CLIPS} clips and cuts no more; start it again for others")
        with storage_error(self.clips, "give another folder by --clips"):
            self.clips.mkdir(parents=True, exist_ok=True)
        begin = cut_out(source, path, start, end)
        self._cut.add(path.name)
        return {"path": str(path.absolute()), "begins_at": round(begin, 3), "ends_at": end}

    def _source(self, video: str) -> tuple[Place, float | None]:
        """Where a video of the index lies, and its length if that is known."""
        found = next((one for one in self.index.store.videos(video) if one.video == video), None)
        if found is None:
            raise InputError(f"{video[:200]}: is not in the index; give a name as search shows it")
        return indexed(found.path, found.video_id), found.length

    def _asked(self, query: Query) -> Any:
        self._embedded(query)
        return self.index.search(query)

    def _embedded(self, query: Query) -> None:
        """Open the model, with as many threads as are wanted."""
        if query.text.strip():
            self.index.encoder(threads=self.threads)


def _words(query: str) -> str:
    if len(query) > MOST_WORDS:
        raise InputError(f"query: is longer than {MOST_WORDS} characters; say it shorter")
    return query


def _bounded(name: str, count: int) -> int:
    if not 1 <= count <= MOST_MOMENTS:
        raise InputError(f"{name}: give a number from 1 to {MOST_MOMENTS}")
    return count


def _date(name: str, text: str) -> float:
    from datetime import datetime

    try:
        return datetime.strptime(text, "%Y-%m-%d").timestamp()
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name}: {text[:40]} is no day; give YYYY-MM-DD") from error


def _told(moment: Any) -> dict[str, Any]:
    told = {name: value for name, value in asdict(moment).items() if name not in ("path", "video_id")}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in told.items()}


def _name(video: str, start: float, end: float, source: Place) -> str:
    """Of a clip's file: nothing of it is an agent's to choose but the stretch."""
    ending = ending_of(source)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(video).stem[:60]) or "clip"
    digest = hashlib.sha256(video.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{stem}-{digest}_{_exact(start)}-{_exact(end)}{ending}"


def _exact(second: float) -> str:
    """A second in as many figures as tell it from others: ``2.0``, ``2.04``."""
    return f"{second:.1f}" if round(second, 1) == second else repr(second)


def server(tools: Tools) -> Any:
    """The server of these tools.

    Raises:
        MissingExtraError: the protocol's package is not installed.
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise MissingExtraError("mcp", "mcp") from error

    def guarded(tool: Callable[..., Any]) -> Callable[..., Any]:
        """One question at a time; what is wrong with it is told to who asked."""

        @wraps(tool)
        def asked(*given: Any, **named: Any) -> Any:
            with tools._lock:
                try:
                    return tool(*given, **named)
                except LavilaError as error:
                    raise ToolError(" ".join(str(error).split())) from error

        return asked

    found = MCPServer("lavila-fast", version=version("lavila-fast"), instructions=ABOUT, log_level="WARNING")
    offered: list[Callable[..., Any]] = [tools.search, tools.moments, *([tools.cut] if tools.clips else [])]
    for tool in offered:
        found.add_tool(guarded(tool))
    return found


def serve(index: Index, clips: Path | None = None, threads: int = 1) -> None:
    """Serve over standard input and output until whoever asked has left; errors as of `server`."""
    server(Tools(index, clips, threads)).run("stdio")
