"""`lavila-fast eval`: what it prints and writes, what it says of bad input, and what differs between two results."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import miniatures
from click.testing import CliRunner

from lavila_fast.cli.main import cli
from lavila_fast.errors import InputError, LavilaError
from lavila_fast.exams.compare import compare
from lavila_fast.exams.result import Result, read_result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eval")
    miniatures.ek100(root / "EK100")
    miniatures.egtea(root / "EGTEA")
    miniatures.ego4d(root / "Ego4D")
    miniatures.dual_encoder(root / "dual.safetensors")
    return root


def invoke(*args: Any) -> tuple[int, str, str]:
    found = CliRunner().invoke(cli, ["eval", *map(str, args)], catch_exceptions=True)
    told = str(found.exception) if isinstance(found.exception, LavilaError) else ""
    return found.exit_code, found.stdout, told or found.stderr


def test_a_result_a_page_and_a_second_run(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "mir.json"
    args = ("ek100_mir", "--model", place / "dual.safetensors", "--data", place / "EK100", "-o", output, "--workers", 0)
    code, out, err = invoke(*args)
    assert code == 0, err
    assert "zero-shot: 6 clips" in out
    assert "LaViLa TSF-L, 16 frames: mAP 36.1, nDCG 34.6 [facebookresearch/LaViLa, docs/MODEL_ZOO.md]" in out
    assert "4 frames, published with 16 (5 of 12 rows)" in out
    assert "EPIC_100_retrieval_test.csv has 6 rows, the published one 9,668" in err
    assert "dual.safetensors on torch" in err
    page = output.with_suffix(".html").read_text()
    assert page.count("data:image/jpeg") >= 8
    assert "<svg" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    told = json.loads(output.read_text())
    assert told["scores"]["map"] == pytest.approx(read_result(output).scores["map"])
    assert told["protocol"]["frames"] == 4
    code, out, err = invoke(*args, "--json", "--no-page")
    assert json.loads(out) == told["scores"]
    assert "6 clips known from an earlier run" in err


def test_pages_of_the_other_benchmarks(place: Path, tmp_path: Path) -> None:
    for name, folder, more in (
        ("egtea", "EGTEA", ("--frames", 4, "--clips", 1, "--crops", 1)),
        ("ego_mcq", "Ego4D", ()),
    ):
        output = tmp_path / f"{name}.json"
        args = (name, "--model", place / "dual.safetensors", "--data", place / folder, "-o", output, "--workers", 0)
        code, _, err = invoke(*args, *more)
        assert code == 0, err
        assert "Clips to look at" in output.with_suffix(".html").read_text()


def test_a_page_of_few_classes_has_them_all(place: Path, tmp_path: Path) -> None:
    output, data = tmp_path / "r.json", miniatures.charades(tmp_path / "CharadesEgo")
    code, _, err = invoke("charades_ego", "--model", place / "dual.safetensors", "--data", data, "-o", output)
    assert code == 0, err
    page = output.with_suffix(".html").read_text()
    for name in ("Holding some clothes", "Washing a cup", "Opening a door"):
        assert page.count(f"<td>{name}</td>") == 1
    assert "<th>source</th>" in page  # words stand to the left
    assert "AP of 3 rows" in page


def test_a_page_of_one_narrated_clip(tmp_path: Path) -> None:
    output, data = tmp_path / "r.json", miniatures.ego4d(tmp_path / "Ego4D")
    model = miniatures.narrator(tmp_path / "narrator.safetensors")
    code, out, err = invoke("narration", "--model", model, "--data", data, "-o", output)
    assert code == 0, err
    assert "zero-shot: 1 clip\n" in out
    page = output.with_suffix(".html").read_text()
    assert "CIDEr-D of 1 clip<" in page
    assert "1 sentence each" in page
    assert "<td class=n>0.282</td>" in page  # a published METEOR, whether or not there is one beside it
    assert "−0" not in page  # no axis below nothing


def altered(place: Path, tmp_path: Path, folder: str, name: str, before: str, after: str) -> Path:
    root = tmp_path / folder
    shutil.copytree(place / folder, root)
    path = root / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    return root


BASE = "epic-kitchens-100-annotations/retrieval_annotations"
BAD = [
    ("ek100_mir", "EK100", f"{BASE}/EPIC_100_retrieval_test_sentence.csv", "P01_01_1", "P77_1", "P77_1 is no clip of"),
    ("ek100_mir", "EK100", f"{BASE}/EPIC_100_retrieval_test.csv", "narration_id", "name", "has no column narration_id"),
    ("ek100_mir", "EK100", f"{BASE}/EPIC_100_retrieval_test.csv", "00:00:03.00", "soon", "line 4: times are not HH:MM"),
    ("egtea", "EGTEA", "test_split1.txt", "-F1-F2 3", "-F1-F2 9", "line 1: not a clip and the number of an action"),
    ("egtea", "EGTEA", "action_idx.txt", "Open fridge 3", "Open fridge", "line 1: does not end with the number"),
    ("ego_mcq", "Ego4D", "egomcq.json", '"types": 1', '"types": 7', "question 0: not five timed clips"),
    (
        "ego_mcq",
        "Ego4D",
        "egomcq.json",
        '"clip_start"',
        '"begin"',
        "question 0: not as EgoMCQ has it (KeyError('clip_start'))",
    ),
    ("ego_mcq", "Ego4D", "egomcq.json", "{", "", "not JSON"),
]


@pytest.mark.parametrize(("name", "folder", "file", "before", "after", "why"), BAD)
def test_annotations_of_another_kind(
    place: Path, tmp_path: Path, name: str, folder: str, file: str, before: str, after: str, why: str
) -> None:
    root = altered(place, tmp_path, folder, file, before, after)
    code, _, err = invoke(name, "--model", place / "dual.safetensors", "--data", root)
    assert code != 0
    assert why in err
    assert "\n" not in err.strip()


def test_a_relevancy_matrix_of_other_files(place: Path, tmp_path: Path) -> None:
    root = tmp_path / "EK100"
    shutil.copytree(place / "EK100", root)
    path = root / BASE / "relevancy" / "caption_relevancy_EPIC_100_retrieval_test.pkl"
    path.write_bytes(pickle.dumps(np.zeros((3, 2))))
    _, _, err = invoke("ek100_mir", "--model", place / "dual.safetensors", "--data", root)
    assert "3 × 2 values for 6 clips and 5 sentences" in err


def test_models_that_do_not_fit(place: Path, tmp_path: Path) -> None:
    path = miniatures.classifier(tmp_path / "c.safetensors", (7,))
    data = ("--data", place / "EGTEA", "-o", tmp_path / "r.json", "--workers", 0, "--frames", 4, "--clips", 1)
    assert (
        "holds a classifier, but this asks for a dual_encoder"
        in invoke("ek100_mir", "--model", path, "--data", place / "EK100")[2]
    )
    assert (
        "holds a dual_encoder, but this asks for a classifier"
        in invoke("egtea", "--model", place / "dual.safetensors", "--protocol", "fine-tuned", *data)[2]
    )
    code, _, err = invoke("egtea", "--model", path, *data)
    assert (code, "the model's heads have 7 classes, these annotations 3" in err) == (1, True)
    assert (
        "no benchmark is called ek100_mri; take ek100_mir" in invoke("ek100_mri", "--model", path, "--data", place)[2]
    )
    assert "no such folder; --data" in invoke("egtea", "--model", path, "--data", tmp_path / "x")[2]
    assert (
        "has no protocol fine-tuned"
        in invoke(
            "ego_mcq", "--model", place / "dual.safetensors", "--data", place / "Ego4D", "--protocol", "fine-tuned"
        )[2]
    )
    assert (
        "no such folder of videos; give it with --videos"
        in invoke("egtea", "--model", path, "--data", place / "EGTEA", "--videos", tmp_path / "none")[2]
    )


def classified(told: list[int], label: list[int], **protocol: Any) -> Result:
    table = {"id": [f"c{i}" for i in range(len(told))], "label": label, "told": told, "in_5": [1] * len(told)}
    return Result("egtea", protocol, {}, {}, {}, {"clips": table}, [])


def test_differences_are_paired_and_their_intervals_cover() -> None:
    random = np.random.default_rng(0)
    label = random.integers(5, size=400).tolist()
    first = [one if random.random() < 0.7 else (one + 1) % 5 for one in label]
    same = compare(classified(first, label), classified(first, label), draws=200)
    assert [(one.change, one.low, one.high) for one in same.differences] == [(0.0, 0.0, 0.0)] * 3
    second = [right if i % 10 == 0 else told for i, (right, told) in enumerate(zip(label, first, strict=True))]
    found = {one.name: one for one in compare(classified(first, label), classified(second, label)).differences}
    gained = np.array([a != r and b == r for a, b, r in zip(first, second, label, strict=True)])
    top1 = found["top1"]
    assert top1.change == pytest.approx(100 * gained.mean())
    error = 100 * gained.std() / math.sqrt(len(gained))
    assert top1.low == pytest.approx(top1.change - 1.96 * error, abs=0.4 * error)
    assert top1.high == pytest.approx(top1.change + 1.96 * error, abs=0.4 * error)
    assert compare(classified(first, label), classified(second, label)).differences == [*found.values()]


def test_what_cannot_be_compared() -> None:
    one = classified([0, 1], [0, 1], frames=4)
    with pytest.raises(InputError, match="results of egtea and of ego_mcq"):
        compare(one, Result("ego_mcq", {}, {}, {}, {}, one.tables, []))
    with pytest.raises(InputError, match="disagree about the labels"):
        compare(one, classified([0, 1], [1, 1]))
    other = classified([0, 1, 1], [0, 1, 2], frames=16)
    found = compare(one, other, draws=100)
    assert found.rows == {"clips": 2}
    assert found.notes == ["frames: 4 in the first, 16 in the second", "only 2 of 3 clips rows are in both"]


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    for name, told in (("a", [0, 1, 2, 2]), ("b", [0, 1, 2, 0])):
        classified(told, [0, 1, 2, 0], frames=4).write(tmp_path / f"{name}.json")
    code, out, _ = invoke("compare", tmp_path / "a.json", tmp_path / "b.json", "--draws", 200)
    assert code == 0
    assert "egtea: 4 clips in both" in out
    assert "+25.00" in out
    code, out, _ = invoke("compare", tmp_path / "a.json", tmp_path / "b.json", "--json")
    assert json.loads(out)["differences"][0]["change"] == 25.0
    (tmp_path / "c.json").write_text('{"format": 9}')
    for path, why in (("c.json", "not a result of `lavila-fast eval` (format 9"), ("d.json", "cannot be read")):
        assert why in invoke("compare", tmp_path / "a.json", tmp_path / path)[2]


def test_files_whose_names_begin_alike_are_told_apart(tmp_path: Path) -> None:
    for name in ("ek100_cls_fp32", "ek100_cls_int8", "other"):
        classified([0, 1], [0, 1], frames=4).write(tmp_path / f"{name}.json")
    first, second, other = (tmp_path / f"{name}.json" for name in ("ek100_cls_fp32", "ek100_cls_int8", "other"))
    heads = invoke("compare", first, second, "--draws", 100)[1].splitlines()[1].split()
    assert heads[:3] == ["first", "second", "change"]
    assert invoke("compare", first, other, "--draws", 100)[1].splitlines()[1].split()[:2] == ["ek100_cl", "other"]


def test_help_names_the_benchmarks() -> None:
    out = invoke("--help")[1]
    assert "charades_ego" in out
    assert "compare" in out
    assert "--max-missing" in invoke("ek100_mir", "--help")[1]


def test_what_was_found_before_a_damaged_video_stays(place: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "EK100", tmp_path / "r.json"
    shutil.copytree(place / "EK100", data)
    film = sorted(data.rglob("*.MP4"))[-1]
    film.write_bytes(film.read_bytes()[:3000])  # it is there, and only reading it shows what is the matter
    args = ("ek100_mir", "--model", place / "dual.safetensors", "--data", data, "-o", output, "--workers", 0)
    code, _, err = invoke(*args, "--no-page")
    assert code == 1
    assert "cannot be read, more than --max-missing allows; the first, " in err
    assert not output.exists()
    code, out, err = invoke(*args, "--max-missing", 0.9)
    assert code == 0, err
    assert "known from an earlier run" in err
    assert "missing: " in out
    assert "<h2>Missing clips</h2>" in output.with_suffix(".html").read_text()
