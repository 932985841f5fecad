"""METEOR on tables small enough to reckon with, and stems as the Snowball project publishes them."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lavila_fast.errors import InputError
from lavila_fast.exams.meteor import meteor, meteor_counts
from lavila_fast.exams.meteor_tables import words_of
from lavila_fast.text.stem import stem

# From the sample vocabulary of the algorithm's page.
STEMS = {
    **{"consign": "consign", "consigned": "consign", "consignment": "consign", "consistency": "consist"},
    **{"consolatory": "consolatori", "consolingly": "consol", "consoling": "consol", "conspicuously": "conspicu"},
    **{"knackeries": "knackeri", "knaves": "knave", "knavish": "knavish", "kneeling": "kneel", "knightly": "knight"},
    **{"knitting": "knit", "knots": "knot", "generously": "generous", "generate": "generat", "skies": "sky"},
    **{"dying": "die", "news": "news", "hopping": "hop", "hoped": "hope", "ties": "tie", "cries": "cri", "gas": "gas"},
    **{"happy": "happi", "by": "by", "say": "say", "national": "nation", "relational": "relat", "probate": "probat"},
    **{"youth": "youth", "boy's": "boy", "boys'": "boy", "controlling": "control", "beautifully": "beauti", "ow": "ow"},
}


@pytest.mark.parametrize(("word", "wanted"), STEMS.items())
def test_stems(word: str, wanted: str) -> None:
    assert stem(word) == wanted


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Function words the and a; cup and mug mean the same; picks up is takes."""
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "meteor-1.5.jar", "w") as jar:
        jar.writestr("function/english.words", "the\na\n")
        jar.writestr("nonbreaking/english.prefixes", "# list\nNo #NUMERIC_ONLY#\nDr\n")
        jar.writestr("synonym/english.synsets", "cup\n11 12\nmug\n12\nman\n7\nfellow\n7\n")
        jar.writestr("synonym/english.exceptions", "man\nmen\n")
    with gzip.open(tmp_path / "data" / "paraphrase-en.gz", "wt") as file:
        file.write("0.5\npicks up\ntakes\n0.1\nnot here\ntakes\n")
    return tmp_path


def score(matched: tuple[float, float], lengths: tuple[float, float], chunks: int, words: float) -> float:
    """The formula of the paper, from weighted matches and lengths of both; one chunk of all words costs nothing (0)."""
    precision, recall = (one / all_ for one, all_ in zip(matched, lengths, strict=True))
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    return mean * (1 - 0.6 * (chunks / words) ** 0.2) if chunks else mean


@pytest.mark.parametrize(
    ("said", "told", "wanted"),
    [
        ("the cup falls", "the cup falls", 1.0),
        ("the cup falls", "a dog runs", 0.0),
        ("", "a cup", 0.0),
        # content counts 0.75, function words 0.25; cup and mug are synonyms (0.8)
        ("the mug falls", "the cup falls", score((0.25 + 0.6 + 0.75,) * 2, (1.75, 1.75), 0, 3)),
        # falling has the stem of falls (0.6); two chunks, as the words between are none
        ("cup now falling", "cup falls", score((0.75 + 0.45,) * 2, (2.25, 1.5), 2, 2)),
        # two words of the sentence for one of the reference (0.6)
        ("picks up cup", "takes cup", score((0.9 + 0.75, 0.45 + 0.75), (2.25, 1.5), 0, 2.5)),
        # men goes back to man, which is a fellow
        ("men run", "fellow run", score((0.6 + 0.75,) * 2, (1.5, 1.5), 0, 2)),
        # of two ways to match "a" the one that leaves fewer chunks
        ("a cup a", "cup a", score((1.0, 1.0), (0.25 + 0.75 + 0.25, 1.0), 1, 2)),
    ],
)
def test_by_hand(said: str, told: str, wanted: float, tables: Path) -> None:
    assert meteor(meteor_counts([(said, told)], tables)) == pytest.approx(wanted)


def test_a_corpus_is_not_a_mean(tables: Path) -> None:
    counts = meteor_counts([("the cup falls", "the cup falls"), ("dog", "a cup falls")], tables)
    assert meteor(counts) == pytest.approx(score((1.75, 1.75), (2.5, 3.5), 0, 3))
    assert meteor(counts) != pytest.approx(np.mean([meteor([one]) for one in counts]))


def test_words() -> None:
    prefixes = {"no": True, "dr": False}
    for sentence, wanted in (
        ("#C C doesn't pick-up the cup.", "# c c doesn 't pick up the cup ."),
        ("It's 3,000, or 12.5 (half)", "it 's 3,000 , or 12.5 ( half )"),
        ("the U.S. man... falls", "the us man ... falls"),
        ("dr. Who has no. 5 and no. You", "dr. who has no. 5 and no . you"),
        ("", ""),
        ("cup. falls", "cup. falls"),
        ("‘old’ “men”", "' old ' \" men \""),
    ):
        assert words_of(sentence, prefixes) == wanted.split()


def test_damaged_tables_are_one_line(tables: Path) -> None:
    (tables / "meteor-1.5.jar").write_bytes(b"PK")
    with pytest.raises(InputError, match="METEOR's tables are damaged"):
        meteor_counts([("a", "b")], tables)


def test_nothing_of_an_evaluation_but_checkpoints_needs_torch() -> None:
    code = "import sys, lavila_fast.exams.run, lavila_fast.exams.report, lavila_fast.exams.compare"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert found.stdout.strip() == "False", found.stderr
