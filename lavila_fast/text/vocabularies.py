"""Vocabulary files as published, turned into splitters of the `tokenizers` library; and small ones of our own.

Ids must be the published ones, so each vocabulary is laid out here as its authors did: GPT-2's in its JSON file, CLIP's
as bytes, bytes that end a word, merges, begin, end; WordPiece's in the order of its lines.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lavila_fast.errors import InputError

MAX_BYTES, MAX_JSON = 64 << 20, 16 << 20  # GPT-2's, the largest known, has 1.4 MB
MOST_WORDS, MOST_REPLACED = 1 << 20, 16
_TRIED = "#C C opens the 3rd drawer's caf\u00e9 \U0001f600\n"
CLIP_MERGES = 49152 - 256 - 2
PAD_TOKEN, BEGIN_TOKEN, END_TOKEN = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SUFFIX = "</w>"
Merge = tuple[str, str]


def _read(path: Path, most: int = MAX_BYTES) -> str:
    """Text of a file of bounded size, unpacked if it is gzip."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            data = bytes(stream.read(most + 1))
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a vocabulary ({error}); fetch it again") from error
    if len(data) > most:
        raise InputError(f"{path}: larger than {most >> 20} MiB, so it is no vocabulary")
    return text


@contextmanager
def library_errors(what: object) -> Iterator[None]:
    """Turn whatever the `tokenizers` library raises into one line: bare Exception, or a panic, which is none.

    Raises:
        InputError: naming `what`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust's is a BaseException
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{what}: not a vocabulary of this kind ({reason}); fetch it again") from error


def _guarded(path: Path, build: Callable[[], Tokenizer]) -> Tokenizer:
    """Call `build` and try what it made; whatever the library says about it becomes one line with the file's path."""
    with library_errors(path):
        made = build()
        made.decode(made.encode(_TRIED, add_special_tokens=False).ids, skip_special_tokens=True)
        return made


def whole_backend(path: Path) -> Tokenizer:
    """Splitter from one `tokenizer.json`."""
    text = _read(path, MAX_JSON)
    return _guarded(path, lambda: Tokenizer.from_str(json.dumps(_bounded(json.loads(text)))))


def _bounded(values: Any) -> Any:
    """The file's values without what is not used (padding, truncation, templates), if its numbers make sense.

    Raises:
        ValueError: ids that are no ids, for which the library would make room.
    """
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError("it holds no model")
    values |= dict.fromkeys(("padding", "truncation", "post_processor"))
    words, model = values["model"].get("vocab"), values["model"]
    if not isinstance(words, dict):
        raise ValueError("its vocabulary is not words with ids")
    added = values.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(one, dict) for one in added):
        raise ValueError("its added tokens are no list of tokens")
    for number in [*words.values(), *(one.get("id") for one in added)]:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MOST_WORDS:
            raise ValueError(f"an id is not a whole number below {MOST_WORDS}")
    longest = model.get("max_input_chars_per_word", 100)
    if isinstance(longest, bool) or not isinstance(longest, int) or not 0 < longest <= MOST_WORDS:
        raise ValueError("max_input_chars_per_word makes no sense")
    _require_plain(values)
    return values


def _require_plain(values: Any) -> None:
    """Raise ValueError for a step with a count or a text that can make much of little, wherever it is."""
    todo = [values.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    while todo:
        step = todo.pop()
        if isinstance(step, list):
            todo += step
        elif isinstance(step, dict):
            todo += step.values()
            if isinstance(step.get("content"), str) and len(step["content"]) > MOST_REPLACED:
                raise ValueError("a step puts in a long text")
        elif isinstance(step, int) and not isinstance(step, bool) and not 0 <= step <= 1000:
            raise ValueError("a step has a number that makes no sense")


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
