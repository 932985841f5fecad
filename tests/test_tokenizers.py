"""Tokenizers against recorded ids, against rules written out here, and against arbitrary text."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavila_fast.errors import InputError
from lavila_fast.text.clean import clean_clip, close_spaces
from lavila_fast.text.tokenizer import Tokenizer, load_tokenizer
from lavila_fast.text.train import train_bpe, train_clip_bpe

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or ROOT / "tests" / "data" / "golden")
FILES = Path(os.environ.get("LAVILA_TOKENIZER_DIR") or ROOT.parent / "shared" / "tokenizers")
CASES = json.loads((GOLDEN / "tokenizers.json").read_text())
SENTENCES = [
    f"#C C {verb} the {color} {thing} with the {hand} hand"
    for verb in ("picks up", "opens", "puts down", "washes")
    for color in ("red", "blue")
    for thing in ("cup", "knife", "pan")
    for hand in ("left", "right")
]
needs_files = pytest.mark.skipif(
    not FILES.is_dir(), reason=f"no published vocabularies in {FILES} (set LAVILA_TOKENIZER_DIR)"
)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer(FILES, "gpt2")


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return load_tokenizer(FILES, "clip")


PLAIN = st.text().filter(lambda text: "<|" not in text)  # a special token spelled out is that token, as in the original
SMALL = train_bpe(SENTENCES, 400, context=4096)


@needs_files
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:20])
def test_recorded_ids(case: dict[str, object], gpt2: Tokenizer, clip: Tokenizer) -> None:
    text = str(case["text"])
    assert clip.encode([text]).tolist() == [case["clip_ids_77"]]
    assert gpt2.rows([text]) == [case["gpt2_ids"]]


@needs_files
def test_published_sizes(gpt2: Tokenizer, clip: Tokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.begin, gpt2.end, gpt2.pad) == (50257, 50256, 50256, 0)
    assert (clip.vocab_size, clip.begin, clip.end, clip.pad) == (49408, 49406, 49407, 0)


@needs_files
def test_overlong_sentences(gpt2: Tokenizer, clip: Tokenizer) -> None:
    text = ["the plate " * 100]
    assert gpt2.encode(text)[0, -1] == gpt2.end  # the original keeps GPT-2's end token and cuts CLIP's off
    assert clip.end not in clip.encode(text)
    assert gpt2.encode(text).shape == clip.encode(text).shape == (1, 77)


@needs_files
def test_saved_file_gives_the_same_ids(gpt2: Tokenizer, clip: Tokenizer, tmp_path: Path) -> None:
    texts = [case["text"] for case in CASES] + ["<|endoftext|> don't"]
    for one, name in ((gpt2, "a.json"), (clip, "b.json")):
        again = load_tokenizer(one.save(tmp_path / name), one.kind)
        assert np.array_equal(again.encode(texts), one.encode(texts))
        assert (again.begin, again.end, again.vocab_size) == (one.begin, one.end, one.vocab_size)


@needs_files
def test_published_gpt2_round_trip(gpt2: Tokenizer) -> None:
    for text in ("  two  spaces ", "naïve — 你好 🎉", "a\nb\tc\x00", "#C C picks up the cup"):
        assert gpt2.decode(gpt2.encode([text])[0]) == text


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_round_trip_of_any_text(text: str) -> None:
    (row,) = SMALL.rows([text])
    assert SMALL.decode(row) == text
    assert all(0 < i < SMALL.vocab_size for i in row)
    assert (row[0], row[-1]) == (SMALL.begin, SMALL.end)
    assert SMALL.end not in row[1:-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(PLAIN, max_size=3))
def test_shape_range_and_mask_of_any_texts(texts: list[str]) -> None:
    clip = train_clip_bpe(SENTENCES, 560, context=12)
    ids, mask = clip.encode_with_mask(texts)
    assert ids.shape == mask.shape == (len(texts), 12)
    assert ids.dtype == np.int64
    assert ((ids == clip.pad) == (mask == 0)).all()
    assert ((ids >= 0) & (ids < clip.vocab_size)).all()


def test_decode_stops_at_the_end_and_skips_begin_and_padding() -> None:
    words = SMALL.rows(["opens the cup"])[0][1:-1]
    end = SMALL.end
    for row in ([end, *words, end, 0, 0], [*words, end, *words], words, [end, *words], np.array([end, *words, end])):
        assert SMALL.decode(row) == "opens the cup"
    assert SMALL.decode([end, end, 0]) == SMALL.decode([end]) == SMALL.decode([]) == ""


def test_decode_without_an_end_token_keeps_every_word() -> None:
    assert SMALL.decode([SMALL.begin, *SMALL.rows(["red cup"])[0][1:-1]]) == "red cup"


def test_trained_gpt2_layout(tmp_path: Path) -> None:
    small = train_bpe(SENTENCES, 300, context=32)
    assert small.vocab_size == 300
    assert small.begin == small.end == 299
    assert small.backend.id_to_token(0) == "<|pad|>"
    assert len(small.rows(SENTENCES[:1])[0]) < len(SENTENCES[0]) / 2
    again = load_tokenizer(small.save(tmp_path).parent, "gpt2", context=32)
    assert np.array_equal(again.encode(SENTENCES), small.encode(SENTENCES))
    assert again.decode(again.encode(SENTENCES[:1])[0]) == SENTENCES[0]


def test_trained_clip_layout(tmp_path: Path) -> None:
    small = train_clip_bpe(SENTENCES, 540, context=32)
    assert small.vocab_size == 540
    assert (small.begin, small.end) == (538, 539)
    ids = small.encode([*SENTENCES, "Zoë 你好 <|endoftext|>"])
    assert (ids.argmax(axis=1) > 0).all()
    assert ids.max() == small.end
    assert small.decode(small.encode(["Opens  the RED cup"])[0]) == "opens the red cup"
    assert np.array_equal(load_tokenizer(small.save(tmp_path), "clip", 32).encode(SENTENCES), small.encode(SENTENCES))


@pytest.mark.parametrize("train", [train_bpe, train_clip_bpe])
def test_training_is_deterministic(train: object) -> None:
    code = (
        "import sys, hashlib, tests.test_tokenizers as t\n"
        f"one = t.{train.__name__}(reversed(t.SENTENCES), 600)\n"
        "print(hashlib.sha256(one.backend.to_str().encode()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert len(runs[0]) == 65
    assert runs[0] == runs[1]


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(InputError, match="258"):
        train_bpe(SENTENCES, 257)
    with pytest.raises(InputError, match="515"):
        train_clip_bpe(SENTENCES, 514)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "wash", "##es", "##ing", "cafe", "plate"]
WORDS += [",", ".", "#", "c", "un", "##wash", "##ed", "你"]


def greedy_wordpiece(word: str) -> list[int]:
    """Longest piece first, all or nothing: the published rule, written out."""
    ids: list[int] = []
    while word:
        pieces = [word[:n] for n in range(len(word), 0, -1) if ("##" if ids else "") + word[:n] in WORDS]
        if not pieces:
            return [1]
        ids.append(WORDS.index(("##" if ids else "") + pieces[0]))
        word = word[len(pieces[0]) :]
    return ids


@pytest.fixture
def wordpiece(tmp_path: Path) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return load_tokenizer(tmp_path, "wordpiece", context=12)


def test_wordpiece_ids_and_mask(wordpiece: Tokenizer) -> None:
    ids, mask = wordpiece.encode_with_mask(["The Café washing, unwashed plates.", "#C 你你"])
    words = ["the", "cafe", "washing", ",", "unwashed", "plates", "."]
    first = [2, *(i for word in words for i in greedy_wordpiece(word)), 3]
    assert ids[0].tolist() == first + [0] * (12 - len(first))
    assert ids[1].tolist()[:6] == [2, *(WORDS.index(word) for word in ("#", "c", "你", "你")), 3]
    assert mask.sum(axis=1).tolist() == [len(first), 6]
    assert (wordpiece.begin, wordpiece.end, wordpiece.pad, wordpiece.vocab_size) == (2, 3, 0, len(WORDS))


def test_wordpiece_decodes_and_cuts(wordpiece: Tokenizer, tmp_path: Path) -> None:
    assert wordpiece.decode(wordpiece.encode(["the unwashed plate."])[0]) == "the unwashed plate."
    assert wordpiece.encode(["the " * 20])[0].tolist() == [2] + [5] * 11
    again = load_tokenizer(wordpiece.save(tmp_path / "w.json"), "wordpiece", 12)
    assert np.array_equal(again.encode(["the washes"]), wordpiece.encode(["the washes"]))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  A\t b\n\nC ", "a b c"),
        ("&amp;lt; tom&#39;s", "< tom's"),
        ("“it’s”", '"it\'s"'),
        ("ﬁne ＡＢ\u3000c\ufeff", "fine ab c"),
        ("e\u0301", "é"),
    ],
)
def test_cleaning_before_clip(text: str, clean: str) -> None:
    assert clean_clip(text) == clean


def test_closing_spaces_is_asked_for() -> None:
    row = SMALL.rows(["do n't cut , stir ."])[0]
    assert SMALL.decode(row) == "do n't cut , stir ."
    assert SMALL.decode(row, clean=True) == "don't cut, stir."
    assert close_spaces("c ' s cup ?") == "c's cup?"


def test_bad_files_name_the_path_and_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \*vocab\.json; a gpt2 tokenizer needs .* models pull"):
        load_tokenizer(tmp_path, "gpt2")
    bad = tmp_path / "tokenizer.json"
    bad.write_text('{"version": "1.0"')
    with pytest.raises(InputError, match=r"tokenizer\.json: not a vocabulary"):
        load_tokenizer(tmp_path, "gpt2")
    cut = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    cut.write_bytes(gzip.compress(b"#version\na b\n" * 9)[:-12])
    with pytest.raises(InputError, match="cannot be read as a vocabulary"):
        load_tokenizer(cut, "clip")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path / "none.gz", "clip")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InputError, match=r"gpt2 tokenizer needs \*vocab\.json and \*merges\.txt"):
        load_tokenizer([tmp_path / "vocab.txt"], "gpt2")
    with pytest.raises(InputError, match="not one of kind wordpiece"):
        load_tokenizer(SMALL.save(tmp_path / "small.json"), "wordpiece")
    with pytest.raises(InputError, match="list of sentences"):
        SMALL.encode("one")
    with pytest.raises(InputError, match="expected gpt2, clip, wordpiece"):
        load_tokenizer(tmp_path, "bert")


def test_a_packed_bomb_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    bomb.write_bytes(gzip.compress(bytes(65 << 20), 1))
    with pytest.raises(InputError, match="larger than 64 MiB"):
        load_tokenizer(bomb, "clip")
