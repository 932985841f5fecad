"""An index of windows that a dual encoder has seen: opened, brought up to date, asked.

index = Index.open(Path("kitchen.index"))
found = index.search(Query(text="#C C cuts the onion"))
for moment in found.moments: print(moment.video, moment.start, moment.end, moment.text)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.archive.finished.merge import read_part
from lavila_fast.archive.journals.identity import difference
from lavila_fast.arrays import F32
from lavila_fast.dual_encoder import DualEncoder
from lavila_fast.errors import InputError, ModelNotFoundError, StorageError
from lavila_fast.files import locked, storage_error, write_json
from lavila_fast.search.fusion import SAMPLE, SURE, Background, fuse
from lavila_fast.search.ingest import Ingested, ingest
from lavila_fast.search.moments import Moment, moments
from lavila_fast.search.store import Store, quoted

NARRATIONS, EMBEDDINGS, ABOUT = "narrations.jsonl", "features.jsonl", "index.json"
_BOUNDS = {  # of a query, and what they ask of a row
    "after": "start >=",
    "before": "end <=",
    "since": "date >=",
    "until": "date <",
    "longer": "length >=",
    "shorter": "length <=",
}
MODES = ("hybrid", "vector", "text")
_GROWS = 0.6  # a window belongs to a moment if it stands out that much of what its best one does
_MOST = 10_000  # windows that are looked at


@dataclass(frozen=True)
class Query:
    """What is looked for: by text, or by a vector.

    Attributes:
        text: A sentence or words.
        vector: (E,), of unit length, in place of a text's.
        mode: ``vector``: what the picture shows; ``text``: words of the sentences; ``hybrid``: both.
        limit: Of moments.
        video: Only in videos whose names contain this.
        only: Only in the video of this name.
        since: Only in videos that were last changed at this time or later, seconds since 1970; `until`: before it.
        longer: Only in videos of at least so many seconds; `shorter`: of at most.
        after: Only from this second of a video on; `before` likewise.
        threshold: By how many spreads a match has to stand out.
    """

    text: str = ""
    vector: F32 | None = None
    mode: str = "hybrid"
    limit: int = 10
    video: str | None = None
    only: str | None = None
    since: float | None = None
    until: float | None = None
    longer: float | None = None
    shorter: float | None = None
    after: float | None = None
    before: float | None = None
    threshold: float = SURE

    def where(self) -> str | None:
        """The filters, in SQL."""
        told = []
        if self.video:
            told.append(f"contains(video, {quoted(self.video)})")
        if self.only is not None:
            told.append(f"video = {quoted(self.only)}")
        for name, what in _BOUNDS.items():
            if (value := getattr(self, name)) is not None:
                told.append(f"{what} {float(value)!r}")
        return " AND ".join(told) or None


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        moments: The best first.
        sure: Whether the best one stands out from the archive at large; of words alone, whether anything was found.
        stands_out: By how many spreads it does; None where nothing was compared.
        stands: The same of each moment that was compared, by video and the second that shows it.
    """

    moments: list[Moment]
    sure: bool
    stands_out: float | None = None
    stands: dict[tuple[str, float], float] = field(default_factory=dict, repr=False)


@dataclass
class Index:
    """An open index.

    Attributes:
        folder: Where it is.
        store: Its table.
        run: Settings of the run that embedded its windows.
        model: Name of the dual encoder, as it was given.
    """

    folder: Path
    store: Store
    run: dict[str, Any]
    model: str
    _open: dict[str, DualEncoder] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path) -> Index:
        """The index in a folder.

        Raises:
            InputError: there is none, or its table is damaged.
        """
        try:
            run, model = _about(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: holds no index; make one: lavila-fast index INPUT -o {folder}") from error
        return cls(folder, Store.open(folder, int(run["dim"])), run, model)

    @classmethod
    def update(cls, folder: Path, model: str, embeddings: Path, narrations: Path | None) -> tuple[Index, Ingested]:
        """Bring an index up to what outputs of runs hold; make it, if there is none.

        Raises:
            InputError: it is of another model or other windows, or its table is damaged.
            StorageError: it cannot be written, or another process writes it.
        """
        taken = StorageError(f"{folder}: another lavila-fast is writing its table; run the same command again later")
        with storage_error(folder / "table"), locked(folder / "table", taken):
            return cls._update(folder, model, embeddings, narrations)

    @classmethod
    def _update(cls, folder: Path, model: str, embeddings: Path, narrations: Path | None) -> tuple[Index, Ingested]:
        run = read_part(embeddings).run
        if _is_told(folder):
            if not Store.there(folder):  # lost, and made of what lies beside it
                Store.create(folder, int(run["dim"]))
            index = cls.open(folder)
            if told := difference(index.run, run):
                raise InputError(f"{folder}: {told}; give another -o, or remove it to index anew")
        else:
            store = Store.create(folder, int(run["dim"]))
            index = cls(folder, store, run, model)
            write_json(folder / ABOUT, {"model": model, "run": run, "schema": 1})
        return index, ingest(index.store, embeddings, narrations)

    def encoder(self, model: str | None = None, threads: int | None = None) -> DualEncoder:
        """The dual encoder that its vectors are of.

        Raises:
            InputError: the one that is there now is another.
        """
        name = model or self.model
        if name not in self._open:
            try:
                opened = DualEncoder.from_pretrained(name, threads=threads)
            except ModelNotFoundError as error:
                if model:
                    raise
                raise InputError(f"{error}; or say by --model where that of {self.folder} is now") from error
            now: Mapping[str, Any] = {**self.run, "model": f"{name} ({opened.fingerprint})"}
            if told := difference(self.run, now):
                raise InputError(f"{self.folder}: {told}; give the model that it was made with by --model")
            self._open[name] = opened
        return self._open[name]

    @cached_property
    def sample(self) -> F32:
        """Vectors of windows that stand for all, (N, E)."""
        return self.store.sample(SAMPLE)

    def search(self, query: Query) -> Found:
        """The moments that fit a query best.

        Raises:
            InputError: the query is empty, of a mode that is none, or for words where no window has any.
        """
        for name in _BOUNDS:
            if not math.isfinite(getattr(query, name) or 0.0):
                raise InputError(f"--{name}: give a number of seconds, or a date")
        if query.mode not in MODES:
            raise InputError(f"--mode {query.mode}: give one of {', '.join(MODES)}")
        if not query.text.strip() and query.vector is None:
            raise InputError("say what to look for: a sentence, or --like VIDEO@SECOND")
        most = min(max(20 * query.limit, 200), _MOST)
        seen, stands = self._seen(query, most) if query.mode != "text" else ([], {})
        stands_out = stands[seen[0].video, seen[0].frame] if seen else None
        said = self._said(query, most) if query.mode != "vector" and query.text.strip() else []
        if query.mode == "text" and not said and self.store.is_mute():
            raise InputError(f"{self.folder}: holds no sentences; leave --mode text out, or index without --no-narrate")
        found = fuse(seen, said) if seen and said else seen or said
        sure = bool(said) if stands_out is None else stands_out >= query.threshold
        return Found(found[: query.limit], sure, stands_out, stands)

    def _seen(self, query: Query, most: int) -> tuple[list[Moment], dict[tuple[str, float], float]]:
        vector = query.vector if query.vector is not None else self.encoder().embed_text([query.text])[0]
        hits = self.store.nearest(vector, most, query.where())
        if not hits:
            return [], {}
        background = Background.of(np.asarray(vector, np.float32), self.sample)
        grown = moments(background.scale(hits), most, _GROWS)
        cosines = {(hit.window.video, hit.window.frame): hit.score for hit in hits}
        stands = {(one.video, one.frame): one.score for one in grown}
        return [replace(one, score=cosines[one.video, one.frame]) for one in grown], stands

    def _said(self, query: Query, most: int) -> list[Moment]:
        return moments(self.store.worded(query.text, most, query.where()), most, _GROWS)


def _about(folder: Path) -> tuple[dict[str, Any], str]:
    """Settings of the run that embedded the windows of an index, and its model.

    Raises:
        OSError, ValueError, KeyError, TypeError: nothing says so.
    """
    about = json.loads((folder / ABOUT).read_bytes())
    run = dict(about["run"])
    return {**run, "dim": int(run["dim"])}, str(about["model"])


def _is_told(folder: Path) -> bool:
    """Whether something says what the index in a folder is of; a file that says nothing is made again."""
    try:
        return bool(_about(folder))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
