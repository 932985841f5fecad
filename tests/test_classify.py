"""`lavila-fast classify`: the labels of a dual encoder's words or of a trained head, window by window."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from lavila_fast import Classifier, DualEncoder
from lavila_fast.archive.formats.labels import LabelLines
from lavila_fast.archive.journals import kinds
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError
from lavila_fast.kitchen.world import all_actions
from lavila_fast.records import ClipLabels
from lavila_fast.zero_shot import MOST_BYTES, MOST_LABELS, ZeroShot, checked_labels, own_temperature, sentences

ASSETS = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets"
GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
TRUTH = [json.loads(line)["text"] for line in (ASSETS / "kitchen.jsonl").read_text("utf-8").splitlines()]
LABELS = sorted({*TRUTH, *random.Random(0).sample([one.sentence for one in all_actions()], 200)})
LOGIT_SCALE = 3.1210938  # of nano, as its weights have it
Classify = Callable[..., int]


@pytest.fixture
def classify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Classify:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ASSETS / "kitchen.mp4", "film.mp4")
    write("labels.txt", LABELS)
    return lambda *words: run(["classify", "--threads", "1", "--no-isolate", *map(str, words)])


@pytest.fixture(scope="module")
def nano() -> DualEncoder:
    return DualEncoder.from_pretrained("nano", threads=1)


@pytest.fixture(scope="module")
def clips(nano: DualEncoder) -> np.ndarray:
    """What the dual encoder makes of the film, by hand."""
    return np.stack([row.embedding for row in nano.embed_video(ASSETS / "kitchen.mp4")])


def write(name: str, labels: list[str]) -> None:
    Path(name).write_text("\n".join(labels) + "\n", "utf-8")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def shares(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def test_nano_finds_what_happens_among_two_hundred_labels(
    classify: Classify, nano: DualEncoder, clips: np.ndarray
) -> None:
    assert classify("film.mp4", "--labels", "labels.txt", "-o", "out.jsonl", "--top-k", len(LABELS)) == 0
    found = rows("out.jsonl")
    assert [row["labels"][0] for row in found] == TRUTH  # 12 of 12, where chance gets none
    expected = shares(clips @ nano.embed_text(LABELS).T * np.exp(LOGIT_SCALE))
    for row, share in zip(found, expected, strict=True):
        scores = dict(zip(row["labels"], row["scores"], strict=True))
        np.testing.assert_allclose([scores[label] for label in LABELS], share, rtol=1e-4, atol=1e-9)
        assert row["scores"] == sorted(row["scores"], reverse=True)


def test_labels_are_put_into_words(
    classify: Classify, nano: DualEncoder, clips: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [label.removeprefix("#C C ") for label in LABELS]
    write("bare.txt", bare)
    templates = ["#C C {}", "{} again"]
    words = [word for one in templates for word in ("--template", one)]
    assert classify("film.mp4", "--labels", "bare.txt", "-o", "one.csv", "--temperature", 0.1, *words) == 0
    vectors = np.mean([nano.embed_text([one.format(label) for label in bare]) for one in templates], axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = shares(clips @ vectors.T / 0.1)
    with Path("one.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4", "5"] * len(clips)
    for number, share in enumerate(expected):
        for line in lines[5 * number : 5 * number + 5]:
            assert float(line["score"]) == pytest.approx(share[bare.index(line["label"])], rel=1e-4)
    assert classify("film.mp4", "--labels", "bare.txt", "-q") == 0  # one video, no output: printed for people
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(TRUTH)
    assert all(text.removeprefix("#C C ") in line for text, line in zip(TRUTH, printed[1:], strict=True))


def test_a_mark_is_not_written_twice() -> None:
    assert sentences("opens the door", ()) == ["#C C opens the door"]
    assert sentences("#O A walks", ()) == ["#O A walks"]
    assert sentences("{0} and {}", ("a {}", "{}")) == ["a {0} and {}", "{0} and {}"]


def test_the_temperature_is_the_models_own(nano: DualEncoder) -> None:
    assert own_temperature(nano) == pytest.approx(np.exp(-LOGIT_SCALE), rel=1e-6)
    pytest.importorskip("torch")
    from lavila_fast.engines.host.eager import TorchDualEncoder
    from lavila_fast.models.dual_encoder import DualEncoder as Reference

    runtime = TorchDualEncoder(Reference(nano.config), threads=1)
    assert own_temperature(replace(nano, runtime=runtime, opened=None)) == pytest.approx(0.07)
    for damaged in (math.nan, math.inf, -math.inf, 1000.0):
        runtime.model.logit_scale.data.fill_(damaged)
        with pytest.raises(InputError, match=r"temperature of its scores is damaged.*or give --temperature"):
            own_temperature(replace(nano, runtime=runtime, opened=None))
    with pytest.raises(InputError, match="does not say the temperature of its scores; give --temperature"):
        own_temperature(replace(nano, opened=None))
    with pytest.raises(InputError, match="give a number over 0"):
        ZeroShot.of(nano, ["a"], temperature=0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e308])
def test_any_temperature_over_0_gives_shares(nano: DualEncoder, clips: np.ndarray, temperature: float) -> None:
    scores = ZeroShot.of(nano, LABELS, temperature=temperature).scores(clips)
    np.testing.assert_allclose(scores.sum(1), 1)
    if temperature < 1:
        assert (scores.max(1) == 1).all()
        assert [LABELS[i] for i in scores.argmax(1)] == TRUTH
    else:
        np.testing.assert_allclose(scores, 1 / len(LABELS))


def test_labels_that_the_model_cannot_tell_apart(nano: DualEncoder) -> None:
    with pytest.raises(InputError, match="number 1, 'Cuts', and 3, 'cuts', are one to this model"):
        ZeroShot.of(nano, ["Cuts", "opens", "cuts"])


def test_a_label_for_people_is_short(classify: Classify, capsys: pytest.CaptureFixture[str]) -> None:
    write("long.txt", ["opens the drawer " * 1000])
    assert classify("film.mp4", "--labels", "long.txt", "-q") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 120


@pytest.mark.parametrize("name", ["film.mp4", "hard.csv", "soft.csv", "labels.txt"])
def test_what_a_run_reads_is_not_written_over(
    classify: Classify, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    os.link("film.mp4", "hard.csv")
    Path("soft.csv").symlink_to("film.mp4")
    before = Path(name).read_bytes()
    for form in ("csv", "jsonl"):
        words = ("-o", name, "--format", form, "--overwrite", "-q")
        assert classify("film.mp4", "--labels", "labels.txt", *words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {name}: would write over")
        assert error.count("\n") == 1
    assert Path(name).read_bytes() == before


def test_what_lies_in_a_chunk_folder_or_names_clips_stays(
    classify: Classify, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("all/uid.mp4").mkdir(parents=True)
    shutil.copy("film.mp4", "all/uid.mp4/0.mp4")
    Path("clips.csv").write_text("video,start,end\nuid,0,2\n")
    kept = {name: Path(name).read_bytes() for name in ("all/uid.mp4/0.mp4", "clips.csv")}
    asked = ["all", "--labels", "labels.txt", "--format", "csv", "--overwrite"]
    assert classify(*asked, "-o", "all/uid.mp4/0.mp4") == 2
    assert classify(*asked, "-o", "clips.csv", "--clips", "clips.csv") == 2
    assert capsys.readouterr().err.count("would write over") == 2
    assert {name: Path(name).read_bytes() for name in kept} == kept


def test_a_run_goes_on_and_takes_no_other_labels(classify: Classify, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["film.mp4", "--labels", "labels.txt", "-o", "out.jsonl", "-q"]
    assert classify(*asked) == 0
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[: len(whole) // 2])
    assert classify(*asked) == 0
    assert Path("out.jsonl").read_bytes() == whole
    capsys.readouterr()
    for change in (["--labels", "fewer.txt"], ["--template", "{}"], ["--temperature", "1"], ["--top-k", "2"]):
        write("fewer.txt", LABELS[:7])
        words = asked if change[0] != "--labels" else [word for word in asked if word not in ("--labels", "labels.txt")]
        assert classify(*words, *change) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "was begun with" in told
    assert Path("out.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "there are no labels"),
        (b"\n \n", "there are no labels"),
        (b"cuts\nwashes\ncuts\n", "'cuts' stands there 2 times"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
        (b"cuts\0\n", "null bytes"),
        (None, "cannot be read (No such file"),
    ],
)
def test_labels_that_are_none(
    classify: Classify, capsys: pytest.CaptureFixture[str], content: bytes | None, told: str
) -> None:
    if content is not None:
        Path("bad.txt").write_bytes(content)
    assert classify("film.mp4", "--labels", "bad.txt") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_too_many_labels(classify: Classify, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("huge.txt").open("wb") as file:
        file.truncate(100 << 20)
    assert classify("film.mp4", "--labels", "huge.txt") == 2
    assert f"over {MOST_BYTES >> 20} MiB" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"give at most {MOST_LABELS}"):
        checked_labels([str(number) for number in range(MOST_LABELS + 1)])


def test_what_does_not_fit(classify: Classify, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--labels", "labels.txt", "--template", "a video"], "write {} once"),
        (["--labels", "labels.txt", "--template", "{} {}"], "write {} once"),
        (["--labels", "labels.txt", "--temperature", "nan"], "give a number over 0"),
        (["--labels", "labels.txt", "--labels", "labels.txt"], "give --labels once"),
        ([], "give --labels FILE"),
        (["--labels", "labels.txt", "--template", "\udcff {}"], "holds half a character"),
        (["--labels", "labels.txt", "--template", "pan " * 80 + "{}"], "are one to this model (it reads the first 32"),
        (["--labels", "labels.txt", "-o", ""], "an output without a name"),
        (["--labels", "labels.txt", "-o", "film.mp4/out.jsonl", "-q"], "film.mp4/out.jsonl: cannot be written"),
    ):
        assert classify("film.mp4", *words) in (1, 2)
        error = capsys.readouterr().err
        assert told in error, error
        assert error.count("\n") == 1


def test_a_narrator_alone_has_no_words(classify: Classify, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ASSETS / "nano", "alone")
    told = json.loads(Path("alone/bundle.json").read_text("utf-8"))
    del told["models"]["dual_encoder"]
    Path("alone/bundle.json").write_text(json.dumps(told), "utf-8")
    assert classify("film.mp4", "--labels", "labels.txt", "--model", "./alone") == 2
    assert "this bundle has no dual_encoder; it holds narrator" in capsys.readouterr().err


def test_a_classifier_needs_no_labels(classify: Classify, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    model = GOLDEN / "classifier_verb_noun_action.pth"
    hands = Classifier.from_pretrained(model, threads=1)
    tiny.film(Path("short.mp4"), seconds=4)
    expected = list(hands.classify("short.mp4"))
    asked = ["short.mp4", "--model", model, "-q", "--top-k", 3]
    assert classify(*asked, "-o", "numbers.jsonl") == 0
    sizes = hands.config.num_classes
    for row, (clip, head) in zip(
        rows("numbers.jsonl"), [(clip, head) for clip in expected for head in range(len(sizes))], strict=True
    ):
        share = shares(clip.logits[head][None])[0]
        assert (row["start"], row["head"]) == (clip.start, head)
        assert row["labels"] == [str(number) for number in np.argsort(-share, kind="stable")[:3]]
        np.testing.assert_allclose(row["scores"], np.sort(share)[::-1][:3], rtol=1e-4)
    names = []
    for head, size in enumerate(sizes):
        write(f"{head}.txt", [f"class {head}.{number}" for number in range(size)])
        names += ["--labels", f"{head}.txt"]
    assert classify(*asked, "-o", "names.jsonl", *names) == 0
    assert [row["labels"] for row in rows("names.jsonl")] == [
        [f"class {row['head']}.{label}" for label in row["labels"]] for row in rows("numbers.jsonl")
    ]
    capsys.readouterr()
    assert classify(*asked, "-o", "wrong.jsonl", "--labels", "0.txt") == 2
    assert f"{sizes[0]} labels, but its heads have" in capsys.readouterr().err
    assert classify(*asked, "-o", "wrong.jsonl", "--template", "{}") == 2
    assert "whose labels are only names" in capsys.readouterr().err


def test_rows_are_read_back() -> None:
    clip = ("a\u2028b.mp4", 0.5, 2.5)
    row = ClipLabels(*clip, ('"cuts", é', "b"), (0.75, 0.25), 1, True, (0.5, 1.5))
    other = ClipLabels(*clip, ("x",), (1.0,), 0, True, (0.5, 1.5))
    lines = LabelLines().clip([other, row]).splitlines(keepends=True)
    assert [kinds.LABELS.parse(line) for line in lines] == [other, row]
    good = json.loads(lines[1])
    for change in ({"labels": "ab"}, {"labels": ["a"]}, {"labels": [1, 2]}, {"scores": None}, {"head": "1"}):
        assert kinds.LABELS.parse(json.dumps(good | change).encode()) is None
