"""Sentences to ids and back, for the three text models: GPT-2 (narrator), CLIP and DistilBERT (dual encoders).

One class serves the three; what differs is a row of `_KINDS`: the special tokens, the cleaning before, and whether an
overlong sentence keeps its end token. The splitting is done by the `tokenizers` library, so neither torch nor
transformers is needed. Any tokenizer saves to one `tokenizer.json`, which is what bundles carry.

    tokenizer = load_tokenizer("folder/with/vocab.json+merges.txt", "gpt2")
    ids = tokenizer.encode(["#C C opens the drawer"])  # (1, 77) int64
    tokenizer.decode(ids[0])                           # "#C C opens the drawer"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

from lavila_fast.errors import InputError
from lavila_fast.files import sha256, write_text
from lavila_fast.text import vocabularies
from lavila_fast.text.clean import clean_clip, close_spaces

Kind = Literal["gpt2", "clip", "wordpiece"]
PAD = 0


class _Rules(NamedTuple):
    begin: str
    end: str
    keeps_end: bool
    clean: Callable[[str], str]
    files: tuple[str, ...]
    build: Callable[..., Backend]


_KINDS: dict[str, _Rules] = {
    "gpt2": _Rules(
        "<|endoftext|>", "<|endoftext|>", True, str, ("*vocab.json", "*merges.txt"), vocabularies.gpt2_backend
    ),
    "clip": _Rules(
        "<|startoftext|>", "<|endoftext|>", False, clean_clip, ("*bpe_simple_vocab*.gz",), vocabularies.clip_backend
    ),
    "wordpiece": _Rules("[CLS]", "[SEP]", False, str, ("*vocab.txt",), vocabularies.wordpiece_backend),
}


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its begin, end and pad tokens.

    Attributes:
        backend: The splitter, of the `tokenizers` library.
        kind: ``gpt2``, ``clip`` or ``wordpiece``.
        context: Length L that `encode` pads and cuts to.
        digest: Of the files it was read from; empty where there were none.
    """

    backend: Backend
    kind: Kind
    context: int = 77
    digest: str = ""

    def __post_init__(self) -> None:
        """Check that the vocabulary has the tokens of its kind."""
        if self.kind not in _KINDS:
            raise InputError(f"unknown kind of tokenizer {self.kind!r}: expected {', '.join(_KINDS)}")
        if self.context < 2:
            raise InputError(f"tokenizer context {self.context} has no room for begin and end token; use at least 2")
        if min(self.begin, self.end) < 0:
            raise InputError(f"the vocabulary lacks begin or end token, so it is not one of kind {self.kind}")
        self.backend.no_padding()
        self.backend.no_truncation()

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        return -1 if found is None else found

    @property
    def begin(self) -> int:
        """Id of the first token of a sentence."""
        return self._id(_KINDS[self.kind].begin)

    @property
    def end(self) -> int:
        """Id of the token after a sentence; the same as `begin` for GPT-2."""
        return self._id(_KINDS[self.kind].end)

    @property
    def pad(self) -> int:
        """Id that fills rows: 0 for all kinds, which in OpenAI's vocabularies is also an exclamation mark."""
        return PAD

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each sentence with begin and end, at most `context` long, without padding.

        As in the original, GPT-2 always keeps the end token; CLIP and DistilBERT cut it off with the rest of an
        overlong sentence.

        Raises:
            InputError: a sentence is no text.
        """
        for text in texts:
            _require_unicode(text)
        rules, words = _KINDS[self.kind], self.context - 2
        with vocabularies.library_errors("the tokenizer"):
            found = self.backend.encode_batch([rules.clean(text) for text in texts], add_special_tokens=False)
        kept = [one.ids[:words] if rules.keeps_end else one.ids for one in found]
        return [[self.begin, *ids, self.end][: self.context] for ids in kept]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Ids (N, context) of N sentences, padded with 0."""
        return self.encode_with_mask(texts)[0]

    def encode_with_mask(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Ids (N, context) as `encode`, and a mask of the same shape: 1 on tokens, 0 on padding."""
        if isinstance(texts, str):
            raise InputError("encode takes a list of sentences; put the one sentence in a list")
        ids = np.full((len(texts), self.context), PAD, dtype=np.int64)
        mask = np.zeros((len(texts), self.context), dtype=np.float32)
        for i, row in enumerate(self.rows(texts)):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def decode(self, ids: Sequence[int] | npt.NDArray[np.int64], clean: bool = False) -> str:
        """The sentence of one row of ids, up to the end token; a leading begin token is skipped.

        A row without an end token is decoded whole (the original drops its last token).

        Args:
            ids: (L,) ids, with or without begin token, end token and padding.
            clean: Also close the spaces before punctuation, as the original's narrations have it.
        """
        row = [int(i) for i in ids]
        row = row[1:] if row[:1] == [self.begin] else row
        row = row[: row.index(self.end)] if self.end in row else row
        with vocabularies.library_errors("the tokenizer"):
            text: str = self.backend.decode(row, skip_special_tokens=True)
        if self.kind == "clip":
            text = text.replace("</w>", " ").strip()
        return close_spaces(text) if clean else text

    def save(self, path: str | Path) -> Path:
        """Write one `tokenizer.json`, whole or not at all; `path` is the file, or a folder that is there already."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        write_text(path, self.backend.to_str(pretty=False))
        return path


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"holds half a character ({text[error.start]!a}), as text that is no UTF-8 does"
        raise InputError(f"{text[:60]!a}: {what}; save or type it as UTF-8") from error


def _find(folder: Path, pattern: str, kind: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    wanted = f"tokenizer.json or {' and '.join(_KINDS[kind].files)}"
    what = f"several files fit {pattern}" if found else f"no {pattern}"
    raise InputError(f"{folder}: {what}; a {kind} tokenizer needs {wanted} (`lavila-fast models pull` brings them)")


def holds_vocabulary(folder: Path, kind: Kind) -> bool:
    """Whether there is something in a folder that looks like a vocabulary of this kind."""
    own = all(any(folder.glob(pattern)) for pattern in _KINDS[kind].files)
    return own or (folder / "tokenizer.json").is_file()


def load_tokenizer(source: str | Path | Sequence[str | Path], kind: Kind, context: int = 77) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: A `tokenizer.json`; a vocabulary file (CLIP's merges, WordPiece's `vocab.txt`); GPT-2's two files, in
            the order vocabulary, merges; or a folder with any of these.
        kind: ``gpt2``, ``clip`` or ``wordpiece``.
        context: Length that `encode` pads and cuts to.

    Raises:
        InputError: files that are missing, unreadable or of another kind.
    """
    if kind not in _KINDS:
        raise InputError(f"unknown kind of tokenizer {kind!r}: expected {', '.join(_KINDS)}")
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(one) for one in source]
    if len(paths) == 1 and paths[0].is_dir():
        whole = paths[0] / "tokenizer.json"
        paths = [whole] if whole.is_file() else [_find(paths[0], one, kind) for one in _KINDS[kind].files]
    whole_file = len(paths) == 1 and paths[0].suffix == ".json"
    if not whole_file and len(paths) != len(_KINDS[kind].files):
        raise InputError(f"{paths[0]}: a {kind} tokenizer needs {' and '.join(_KINDS[kind].files)} or a tokenizer.json")
    build: Callable[..., Any] = vocabularies.whole_backend if whole_file else _KINDS[kind].build
    backend = build(*paths)
    return Tokenizer(backend, kind, context, " ".join(map(sha256, paths)))
