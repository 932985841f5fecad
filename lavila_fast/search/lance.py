"""LanceDB's tables in an index's folder: opened, put in each other's place, and what is wrong with one in a line."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from lavila_fast.errors import InputError, LavilaError, MissingExtraError, StorageError

TABLE, _PLACE = "windows", "table"
NEW, _OLD = f"{TABLE}_new", f"{TABLE}_old"
_FRESH = timedelta(seconds=1)  # who has it open sees what others have added so long ago
TROUBLE = (RuntimeError, ValueError, OSError)  # what LanceDB raises, whatever is the matter
_PLACES = re.compile(r", \S+\.rs:\d+:\d+")  # of its own source
T = TypeVar("T")


class _NoTable(OSError):
    """There is no table."""


@contextlib.contextmanager
def sound(folder: Path) -> Iterator[None]:
    """What LanceDB says of a table that it cannot read or write becomes a line.

    Raises:
        InputError: the table is damaged, or there is none.
        StorageError: the disk is full, or not this user's.
    """
    try:
        yield
    except LavilaError:
        raise
    except _NoTable as error:
        raise InputError(f"{folder}: holds no index; make one: lavila-fast index INPUT -o {folder}") from error
    except TROUBLE as error:
        told = _PLACES.sub("", " ".join(str(error).split()))[:200]
        if found := re.search("no space left on device|disk quota exceeded|permission denied|read-only", told, re.I):
            todo = "make room, or give this user the right to write there, and run the same command again"
            raise StorageError(f"{folder}: its table cannot be used ({found[0].lower()}); {todo}") from error
        todo = "and run lavila-fast index again with the same -o: nothing is embedded again"
        raise InputError(f"{folder}: its table is damaged ({told}); remove {folder / _PLACE} {todo}") from error


def patiently(action: Callable[[], T]) -> T:
    """Do something that a table spoils while somebody puts it in another's place, a few times if it must be."""
    for pause in (0.05, 0.2, 0.5):
        with contextlib.suppress(*TROUBLE):
            return action()
        time.sleep(pause)
    return action()


def table_path(folder: Path, name: str) -> Path:
    """Where a table lies."""
    return folder / _PLACE / f"{name}.lance"


def mode_of(folder: Path, name: str) -> str:
    """How to make a table in place of any: LanceDB warns where there is nothing to overwrite."""
    return "overwrite" if table_path(folder, name).exists() else "create"


def open_table(folder: Path) -> Any:
    """The table, or while there is none the one that it is about to take the place of."""
    name = next((one for one in (TABLE, _OLD) if table_path(folder, one).is_dir()), None)
    if name is None:  # to connect would make a folder
        raise _NoTable
    return connect(folder).open_table(name)


def mend(folder: Path) -> None:
    """Put a table back that somebody who was killed while he compacted it has left under its other name."""
    table, old = table_path(folder, TABLE), table_path(folder, _OLD)
    if not table.exists() and old.is_dir():
        old.rename(table)


def put_in_place(folder: Path) -> None:
    """Let the new table be the table. Whoever is killed meanwhile leaves the old one or the new one, see `mend`."""
    table, new, old = (table_path(folder, name) for name in (TABLE, NEW, _OLD))
    shutil.rmtree(old, ignore_errors=True)
    table.rename(old)
    new.rename(table)
    shutil.rmtree(old, ignore_errors=True)


def require_search() -> None:
    """See that there can be an index.

    Raises:
        MissingExtraError: there cannot.
    """
    os.environ.setdefault("LANCEDB_LOG", "error")  # read when it is imported; its warnings are of nothing a user did
    try:
        import lancedb  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lancedb", "search") from error


def connect(folder: Path) -> Any:
    """LanceDB in the folder of an index, which is made if there is none."""
    require_search()
    import lancedb

    return lancedb.connect(folder / _PLACE, read_consistency_interval=_FRESH)
