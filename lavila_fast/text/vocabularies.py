"""Vocabulary files as published, turned into splitters of the `tokenizers` library; and small ones of our own.

Ids must be the published ones, so each vocabulary is laid out here as its authors did: GPT-2's in its JSON file, CLIP's
as bytes, bytes that end a word, merges, begin, end; WordPiece's in the order of its lines.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lavila_fast.errors import InputError

MAX_BYTES = 64 << 20
CLIP_MERGES = 49152 - 256 - 2
PAD_TOKEN, BEGIN_TOKEN, END_TOKEN = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SUFFIX = "</w>"
Merge = tuple[str, str]


def _read(path: Path) -> str:
    """Text of a file of bounded size, unpacked if it is gzip."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            data = bytes(stream.read(MAX_BYTES + 1))
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a vocabulary ({error}); fetch it again") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so it is no vocabulary")
    return text


def _guarded(path: Path, build: Callable[[], Tokenizer]) -> Tokenizer:
    """Call `build`; whatever the library says about a malformed file becomes one line with its path."""
    try:
        return build()
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: not a vocabulary of this kind ({error}); fetch it again") from error


def whole_backend(path: Path) -> Tokenizer:
    """Splitter from one `tokenizer.json`."""
    text = _read(path)
    return _guarded(path, lambda: Tokenizer.from_str(text))


def _merges(lines: Iterable[str]) -> list[Merge]:
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a merge is two words a line")
    return [(pair[0], pair[1]) for pair in pairs]


def _gpt2(vocab: dict[str, int], merges: list[Merge]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_TOKEN, normalized=False, special=True)])
    return tokenizer


def gpt2_backend(vocab: Path, merges: Path) -> Tokenizer:
    """Splitter from GPT-2's `vocab.json` and `merges.txt`."""
    words, pairs = _read(vocab), _read(merges)
    return _guarded(vocab, lambda: _gpt2(json.loads(words), _merges(pairs.split("\n"))))


def _bytes() -> list[str]:
    """The 256 letters that stand for bytes, in the order of CLIP's ids: printable bytes first, then the others."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())  # the others' stand-ins begin at U+0100, so they sort last


def _clip(first: Sequence[str], merges: list[Merge]) -> Tokenizer:
    letters = [*_bytes(), *(letter + _SUFFIX for letter in _bytes())]
    vocab = _ids([*first, *letters, *(a + b for a, b in merges), BEGIN_TOKEN, END_TOKEN])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=_SUFFIX))
    tokenizer.pre_tokenizer = _clip_words()
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, normalized=False, special=True) for token in (*first, BEGIN_TOKEN, END_TOKEN)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _clip_words() -> Any:
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def clip_backend(merges: Path) -> Tokenizer:
    """Splitter from OpenAI's `bpe_simple_vocab_16e6.txt.gz`: its first line is a title, 48,894 merges follow."""
    lines = _read(merges).split("\n")[1 : CLIP_MERGES + 1]
    return _guarded(merges, lambda: _clip([], _merges(lines)))


def wordpiece_backend(vocab: Path) -> Tokenizer:
    """Splitter from BERT's `vocab.txt`, uncased."""
    words = {word: i for i, word in enumerate(_read(vocab).rstrip("\n").split("\n"))}
    tokenizer = _guarded(vocab, lambda: Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]")))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    special = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in words]
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    return tokenizer


def _learn(sentences: Iterable[str], merges: int, words: Any, suffix: str = "") -> list[Merge]:
    """The most frequent merges of byte letters, at most `merges` of them."""
    ends: dict[str, Any] = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**ends))
    tokenizer.pre_tokenizer = words
    size = (512 if suffix else 256) + merges
    # Ties between pairs go to the lower ids. Word-ending letters would get theirs in the order of a hash table, which
    # differs from run to run, so they are given theirs beforehand.
    letters = [letter + suffix for letter in _bytes()] if suffix else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=_bytes(), special_tokens=letters, show_progress=False, **ends
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]][:merges]


def _ids(words: Iterable[str]) -> dict[str, int]:
    """Ids in order; two merges that spell the same word share one."""
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def train_gpt2_backend(sentences: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level vocabulary: pad at 0, 256 bytes, merges, end of text last."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    merges = _learn(sentences, _room(vocab_size, 256 + 2), words)
    tokenizer = _gpt2(_ids([PAD_TOKEN, *_bytes(), *(a + b for a, b in merges), END_TOKEN]), merges)
    tokenizer.add_special_tokens([AddedToken(PAD_TOKEN, normalized=False, special=True)])
    return tokenizer


def train_clip_backend(sentences: Iterable[str], vocab_size: int) -> Tokenizer:
    """CLIP's layout behind a pad at 0: bytes, word-ending bytes, merges, begin, end; the end has the highest id."""
    merges = _learn(sentences, _room(vocab_size, 512 + 3), _clip_words(), _SUFFIX)
    return _clip([PAD_TOKEN], merges)


def _room(vocab_size: int, fixed: int) -> int:
    if vocab_size < fixed:
        raise InputError(f"a vocabulary of {vocab_size} is too small: the bytes and special tokens alone are {fixed}")
    return vocab_size - fixed
