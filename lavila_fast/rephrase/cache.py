"""Candidates that were found, on disk: a sentence is never asked twice, whichever run or file it comes from.

One SQLite file; what a model said of a batch is written in one transaction, so a process that is killed at any time
costs at most the batch that it was at. Rows of other models or ways of searching stand beside each other under other
keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavila_fast.errors import StorageError
from lavila_fast.files import storage_error

_MAKE = "CREATE TABLE IF NOT EXISTS candidates (key TEXT, sentence TEXT, found TEXT, PRIMARY KEY (key, sentence))"
_PATIENCE = 60.0  # seconds, while another process writes


class Cache:
    """An open cache. Use it as a context manager.

    Attributes:
        path: The file.
        key: Digest of model and search.
    """

    def __init__(self, path: Path, identity: str, search: Mapping[str, Any]) -> None:
        """Open or make one, for what a model says under these settings.

        Raises:
            StorageError: it cannot be written, or is something else.
        """
        self.path = path
        self.key = hashlib.sha256(json.dumps([identity, dict(search)], sort_keys=True).encode()).hexdigest()
        with storage_error(path, "give another --cache"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._base = sqlite3.connect(path, timeout=_PATIENCE)
            self._base.execute(_MAKE)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *error: object) -> None:
        self._base.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            what = f"cannot be used as a cache of paraphrases ({error})"
            raise StorageError(f"{self.path}: {what}; give another --cache, or move it away") from error

    def get(self, sentence: str) -> list[str] | None:
        """What was found for a sentence, or None.

        Raises:
            StorageError: the file is damaged.
        """
        with self._told():
            asked = "SELECT found FROM candidates WHERE key = ? AND sentence = ?"
            row = self._base.execute(asked, (self.key, sentence)).fetchone()
            found: list[str] | None = None if row is None else json.loads(row[0])
        return found

    def missing(self, sentences: Iterable[str]) -> list[str]:
        """Those of which nothing is known yet; a model that said nothing at all is asked again."""
        return [one for one in sentences if not self.get(one)]

    def put(self, sentences: Sequence[str], found: Sequence[Sequence[str]]) -> None:
        """Keep candidates, all of a batch or none.

        Raises:
            StorageError: the disk is full, say.
        """
        rows = [(self.key, one, json.dumps(list(texts))) for one, texts in zip(sentences, found, strict=True)]
        with self._told(), self._base:
            self._base.executemany("INSERT OR REPLACE INTO candidates VALUES (?, ?, ?)", rows)
