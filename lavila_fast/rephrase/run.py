"""From narrations to paraphrases: each distinct sentence once, from the cache or from a model.

counts = rephrase(Job(Path("in.jsonl"), Path("out.pkl")), model, cache)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lavila_fast.errors import InputError, ServerError
from lavila_fast.rephrase.cache import Cache
from lavila_fast.rephrase.choose import REASONS, choose
from lavila_fast.rephrase.marks import Marked
from lavila_fast.rephrase.outputs import Kind, Rephrased, check_output, write_rephrased
from lavila_fast.rephrase.sources import Row, read_narrated

MOST_REFUSED = 20
"""As many refusals in a row more than sentences that were ever answered say that it is not the sentences."""


class Refused(NamedTuple):
    """In place of candidates: a sentence that is not taken, which says nothing about others.

    Attributes:
        by: Who refuses it.
        why: In a few words.
    """

    by: str
    why: str


class Model(Protocol):
    """What paraphrases sentences."""

    def batches(self, sentences: Sequence[str]) -> Iterator[list[str]]:
        """All of them, in the groups in which they are best asked."""

    def paraphrase(self, sentences: Sequence[str]) -> Sequence[list[str] | Refused]:
        """Candidates of each, the best first."""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        source: Narrations.
        output: Where they go with their paraphrases.
        column: Of the text.
        top: Paraphrases to keep of a sentence.
        limit: Rows; None: all.
        with_source: Whether the original's metadata has the sentence itself, too.
    """

    source: Path
    output: Path
    column: str = "text"
    top: int = 3
    limit: int | None = None
    with_source: bool = True

    def rows(self) -> Iterator[Row]:
        """What is read."""
        return read_narrated(self.source, self.column, self.limit)


@dataclass
class Counts:
    """What came in and what became of it.

    Attributes:
        rows: Read.
        texts: Sentences in them.
        sentences: Of those different as a model reads them.
        known: Of these found in the cache.
        unsure: Texts that were not asked for; see `Marked.askable`.
        candidates: Of all different texts.
        kept: Of the candidates.
        without: Different texts of which no candidate stayed.
        dropped: Other candidates, by reason.
        refused: A line about each sentence that was refused; a later run asks for it again.
        seconds: In the model.
    """

    rows: int = 0
    texts: int = 0
    sentences: int = 0
    known: int = 0
    unsure: int = 0
    candidates: int = 0
    kept: int = 0
    without: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0; 1 if a sentence was refused; 3 if all of several were."""
        if not self.refused:
            return 0
        return 3 if len(self.refused) == self.sentences > 1 else 1

    def to_dict(self) -> dict[str, Any]:
        """All of it, and sentences a second that went through the model."""
        asked = self.sentences - self.known
        speed = round(asked / self.seconds, 2) if asked and self.seconds else None
        dropped = {reason: self.dropped[reason] for reason in REASONS}
        return {**asdict(self), "dropped": dropped, "seconds": round(self.seconds, 3), "sentences_per_s": speed}


def rephrase(
    job: Job,
    model: Model,
    cache: Cache,
    said: Callable[[int, int], None] = lambda done, total: None,
    refused: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Do it.

    Args:
        job: What.
        model: Asked for sentences that the cache does not know.
        cache: Keeps what the model says, batch by batch.
        said: Told sentences done and to be done.
        refused: Told a line about each sentence that is refused.

    Raises:
        LavilaError: the input, the model or the output fails; what the model has said so far stays in the cache.
    """
    check_output(job.output, job.column)
    counts, names = Counts(), dict[str, None]()
    sentences = _sentences(job, counts, names)
    todo = cache.missing(sentences)
    counts.sentences, counts.known = len(sentences), len(sentences) - len(todo)
    began = time.perf_counter()
    for line in _ask(model, cache, todo, counts.known, said):
        counts.refused.append(line)
        refused(line)
    counts.seconds = time.perf_counter() - began
    kind = Kind(job.column, list(names), job.top, job.with_source)
    write_rephrased(job.output, _rephrased(job, cache, counts), kind)
    return counts


def _sentences(job: Job, counts: Counts, names: dict[str, None]) -> list[str]:
    """Different sentences as a model reads them, in order; counts rows and notes the names of columns.

    Raises:
        InputError: there is no row.
    """
    found: dict[str, None] = {}
    for row in job.rows():
        counts.rows, counts.texts = counts.rows + 1, counts.texts + len(row.texts)
        names.update(dict.fromkeys(row.fields))
        for text in row.texts:
            marked = Marked.parse(text)
            counts.unsure += not marked.askable
            if marked.askable:
                found[marked.natural()] = None
    if not counts.rows:
        raise InputError(f"{job.source}: holds no narrations")
    return list(found)


def _ask(
    model: Model, cache: Cache, todo: Sequence[str], known: int, said: Callable[[int, int], None]
) -> Iterator[str]:
    """Ask for all of them; a line about each that is refused, once others are answered or no more are to be asked for.

    Raises:
        ServerError: the model fails, or refuses so many one after another that it is not for the sentences' sake.
    """
    done, answered, waiting = 0, 0, list[tuple[str, Refused]]()
    try:
        for batch in model.batches(todo):
            found, refused = _answers(model, batch)
            cache.put(list(found), list(found.values()))
            done, answered, waiting = done + len(batch), answered + len(found), waiting + refused
            said(done, len(todo))
            if found:
                yield from _lines(waiting)
                waiting = []
            elif len(waiting) >= MOST_REFUSED + known + answered:
                by, why = waiting[-1][1]
                told = f"{by}: refuses {len(waiting)} sentences one after another ({why})"
                raise ServerError(f"{told}; check --model, --prompt and --max-tokens")
    except ServerError as error:
        if not answered:
            raise
        kept = f"{answered} of {len(todo)} sentences are kept in {cache.path}, run the same command again to go on"
        raise ServerError(f"{error}; {kept}") from error
    yield from _lines(waiting)


def _answers(model: Model, batch: Sequence[str]) -> tuple[dict[str, list[str]], list[tuple[str, Refused]]]:
    found, refused = dict[str, list[str]](), list[tuple[str, Refused]]()
    for sentence, answer in zip(batch, model.paraphrase(batch), strict=True):
        if isinstance(answer, Refused):
            refused.append((sentence, answer))
        else:
            found[sentence] = answer
    return found, refused


def _lines(refused: Sequence[tuple[str, Refused]]) -> Iterator[str]:
    for sentence, (by, why) in refused:
        yield f"{by}: refuses {sentence!r} ({why}); it has no paraphrases, run the same command again to ask for it"


def _rephrased(job: Job, cache: Cache, counts: Counts) -> Iterator[Rephrased]:
    """Rows with their paraphrases; candidates of a text are counted once."""
    seen: dict[str, list[str]] = {}
    for row in job.rows():
        found = []
        for text in row.texts:
            if text not in seen:
                seen[text] = _chosen(Marked.parse(text), job.top, cache, counts)
            found.append(seen[text])
        yield Rephrased(row, found)


def _chosen(marked: Marked, top: int, cache: Cache, counts: Counts) -> list[str]:
    if not marked.askable:
        return []
    candidates = cache.get(marked.natural()) or []
    kept = choose(marked, candidates, top, counts.dropped)
    counts.candidates, counts.kept = counts.candidates + len(candidates), counts.kept + len(kept)
    counts.without += not kept
    return kept
