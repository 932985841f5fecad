"""Which files a run writes: they are none that it reads, and none that another run beside it writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lavila_fast.archive.accounts.history import history_path
from lavila_fast.archive.journals.index import index_path
from lavila_fast.archive.journals.journal import SIDECAR
from lavila_fast.archive.journals.videos import records_path
from lavila_fast.archive.names import RECORD
from lavila_fast.archive.outputs import Output, journal_path, segments_path
from lavila_fast.archive.sources.shards import marker_of
from lavila_fast.errors import InputError


def written(output: Output) -> list[Path]:
    """The files of an output in files, whether or not they are there; without those of single videos in a folder."""
    if output.kind == "stream" or output.path is None:
        return []
    journal = Path(os.path.realpath(journal_path(output)))
    beside = [journal.with_name(journal.name + suffix) for suffix in (SIDECAR, RECORD)]
    own = [journal, *beside, records_path(journal), marker_of(journal), index_path(journal), history_path(journal)]
    if (segments := segments_path(output)) is None:
        return own
    return [Path(os.path.realpath(output.path)), Path(os.path.realpath(segments)), *own]


def require_none_read(output: Output, reads: Iterable[Path]) -> None:
    """See that no file of an output is one that the run reads, by whatever name.

    Args:
        output: Where rows go.
        reads: Files, and chunk folders, whose files count.

    Raises:
        InputError: one is.
    """
    own = {key: path for path in written(output) if (key := _key(path))}
    for read in reads if own else ():
        for path in (read, *_within(read, own.values())):
            if _key(path) in own:
                raise InputError(f"{output}: would write over {path}, which this run reads; give another --output")


def require_apart(one: Output, other: Output, told: str) -> None:
    """See that two outputs have no file in common.

    Raises:
        InputError: they have, and the line begins with `told`.
    """
    if set(written(one)) & set(written(other)):
        raise InputError(f"{told}: that is where the narrations go, or what lies beside them; give another name")


def _within(folder: Path, paths: Iterable[Path]) -> Iterator[Path]:
    return (folder / path.name for path in paths) if folder.is_dir() else iter(())


def _key(path: Path) -> tuple[int, int] | None:
    """What tells files apart; None: there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino
