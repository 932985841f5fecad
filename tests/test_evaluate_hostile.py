"""`lavila-fast eval` given what it cannot use: one clear line each time, and what was found stays usable."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
from click.testing import CliRunner

from lavila_fast.cli.main import cli
from lavila_fast.errors import InputError, LavilaError
from lavila_fast.exams.compare import compare
from lavila_fast.exams.data_folder import DataFolder
from lavila_fast.exams.exam import Seen
from lavila_fast.exams.features import FeatureStore
from lavila_fast.exams.footage import Library
from lavila_fast.exams.protocols import PROTOCOLS
from lavila_fast.exams.result import read_result

TEST = "epic-kitchens-100-annotations/retrieval_annotations/EPIC_100_retrieval_test.csv"
SENTENCES = TEST.replace(".csv", "_sentence.csv")
MATRIX = "epic-kitchens-100-annotations/retrieval_annotations/relevancy/caption_relevancy_EPIC_100_retrieval_test.pkl"
CHARADES = "CharadesEgo/CharadesEgo_v1_test_only1st.csv"
CLASSES = "CharadesEgo/Charades_v1_classes.txt"
Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    miniatures.ek100(root / "EK100")
    miniatures.egtea(root / "EGTEA")
    miniatures.charades(root / "CharadesEgo")
    miniatures.ego4d(root / "Ego4D")
    return root


def replaced(before: str, after: str) -> Change:
    def change(content: bytes) -> bytes:
        assert before.encode() in content
        return content.replace(before.encode(), after.encode())

    return change


def only(content: bytes) -> Change:
    return lambda _: content


def first_line(content: bytes) -> bytes:
    return content.splitlines(keepends=True)[0]


def utf16(content: bytes) -> bytes:
    return content.decode().encode("utf-16")


def spoilt_matrix(value: float) -> Change:
    def change(content: bytes) -> bytes:
        found = pickle.loads(content)  # what this test wrote itself
        found[2, 1] = value
        return pickle.dumps(found)

    return change


BAD = [
    ("ek100_mir", "EK100", TEST, first_line, "holds no clips"),
    ("ek100_mir", "EK100", TEST, only(b""), "has no column narration_id"),
    ("ek100_mir", "EK100", TEST, utf16, "no CSV in UTF-8"),
    ("ek100_mir", "EK100", SENTENCES, first_line, "holds no sentences"),
    ("ek100_mir", "EK100", TEST, replaced(",v,0,n,2,", ",v,-3,n,2,"), "-3 and 2 are no numbers of a verb and a noun"),
    ("ek100_mir", "EK100", MATRIX, spoilt_matrix(float("nan")), "holds values that are none of 0 to 1"),
    ("ek100_mir", "EK100", MATRIX, spoilt_matrix(7.0), "holds values that are none of 0 to 1"),
    ("ek100_mir", "EK100", MATRIX, only(pickle.dumps(np.zeros(6))), "holds no matrix of numbers"),
    ("ek100_mir", "Ego4D", "egomcq.json", only(b"{}"), "EPIC_100_retrieval_test.csv: no such file; --data is to be"),
    ("egtea", "EGTEA", "test_split1.txt", only(b""), "its annotations hold no clips"),
    ("egtea", "EGTEA", "action_idx.txt", utf16, "not UTF-8 text"),
    (
        "egtea",
        "EGTEA",
        "action_idx.txt",
        replaced("tomato 1", "tomato 3"),
        "line 2: 3 is the number of an action above",
    ),
    (
        "egtea",
        "EGTEA",
        "test_split1.txt",
        replaced(" 3 1 2", f" {'9' * 5000} 1 2"),
        "line 1: not a clip and the number",
    ),
    ("charades_ego", "CharadesEgo", CLASSES, replaced("c001", "c000"), "line 2: c000 is the code of a class above"),
    ("charades_ego", "CharadesEgo", CHARADES, utf16, "not UTF-8 text"),
    ("charades_ego", "CharadesEgo", CHARADES, first_line, "its annotations hold no clips"),
    ("charades_ego", "CharadesEgo", CHARADES, replaced("c002 1.0", "c999 1.0"), "line 2: c999 is no class of"),
    ("charades_ego", "CharadesEgo", CHARADES, only(b"id,actions,length\nA1,,30\n"), "no video shows an action"),
    ("charades_ego", "CharadesEgo", CLASSES, only(b""), "holds no classes"),
    ("charades_ego", "CharadesEgo", CLASSES, lambda content: b"\xff" + content, "not UTF-8 text"),
    ("ego_mcq", "Ego4D", "egomcq.json", replaced('"v0"', '"../v0"'), "not five timed clips"),
    ("ego_mcq", "Ego4D", "egomcq.json", replaced('"clip_start": 0.0', '"clip_start": 1e300'), "not five timed clips"),
    ("ego_mcq", "Ego4D", "egomcq.json", replaced('"clip_start": 0.0', '"clip_start": NaN'), "not five timed clips"),
    (
        "ego_mcq",
        "Ego4D",
        "egomcq.json",
        replaced('"clip_start": 0.0', f'"clip_start": {"9" * 400}'),
        "not as EgoMCQ has",
    ),
    ("ego_mcq", "Ego4D", "egomcq.json", replaced('"answer": 0', '"answer": 1e999'), "not as EgoMCQ has it"),
    ("ego_mcq", "Ego4D", "egomcq.json", replaced('"answer": 0', '"answer": 2.7'), "2.7 is no whole number"),
    ("ego_mcq", "Ego4D", "egomcq.json", replaced('"wash cup"', "null"), "a sentence is no NoneType"),
    ("ego_mcq", "Ego4D", "egomcq.json", only(b"[" * 100_000), "not JSON"),
    ("narration", "Ego4D", "ego4d_val.pkl", only(pickle.dumps({"a": 1})), "holds a dict, not a list"),
    ("narration", "Ego4D", "ego4d_val.pkl", only(pickle.dumps([])), "holds no narrations"),
    ("narration", "Ego4D", "ego4d_val.pkl", only(b"cos\nsystem\n(S'x'\ntR."), "ego4d_val.pkl"),
]


def refused(*args: Any) -> LavilaError:
    """The error of a command, before any model is opened."""
    found = CliRunner().invoke(cli, ["eval", *map(str, args), "--model", "none.pth"])
    assert isinstance(found.exception, LavilaError), found.exception
    return found.exception


@pytest.mark.parametrize(("name", "folder", "file", "change", "why"), BAD)
def test_bad_annotations(
    place: Path, tmp_path: Path, name: str, folder: str, file: str, change: Change, why: str
) -> None:
    root = tmp_path / folder
    shutil.copytree(place / folder, root)
    (root / file).write_bytes(change((root / file).read_bytes()))
    error = refused(name, "--data", root, "-o", tmp_path / "r.json")
    assert why in str(error)
    assert "none.pth" not in str(error)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for name in ("x" * 300 + ".mp4", "a\0b.mp4", "", "."):
        assert not library.holds(name)


def test_outputs_that_make_no_sense(place: Path, tmp_path: Path) -> None:
    data = ("egtea", "--data", place / "EGTEA")
    assert "is the page; name a .json file" in str(refused(*data, "-o", tmp_path / "r.html"))
    assert "is a folder; name a .json file" in str(refused(*data, "-o", tmp_path))
    assert "is the folder of features; name a .json file" in str(refused(*data, "-o", tmp_path / "r.features"))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in str(refused(*data, "-o", tmp_path / "file" / "r.json"))


def test_a_clip_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    from lavila_fast.exams.annotations import open_ek100_mir

    root = miniatures.ek100(tmp_path / "EK100", relevancy=False, rows=[*miniatures.ROWS, miniatures.ROWS[0]])
    exam = open_ek100_mir(DataFolder(root), PROTOCOLS["ek100_mir"]["zero-shot"])
    assert exam.ids[-1] == "P01_01_0#2"
    assert len(set(exam.ids)) == 7


def test_nouns_that_are_truth_values(tmp_path: Path) -> None:
    root = miniatures.ek100(tmp_path / "EK100", relevancy=False)
    path = root / TEST
    path.write_text(path.read_text().replace("[2]", "[true]"))
    with pytest.raises(InputError, match="line 2: verb_class and all_noun_classes are not numbers"):
        open_benchmark("ek100_mir", root)


def test_blank_lines_and_byte_order_marks_count_for_nothing(place: Path, tmp_path: Path) -> None:
    before = {}
    for name, folder, files in (
        ("egtea", "EGTEA", ("action_idx.txt", "test_split1.txt")),
        ("charades_ego", "CharadesEgo", (CLASSES,)),
        ("ego_mcq", "Ego4D", ("egomcq.json",)),
    ):
        before = vars(open_benchmark(name, place / folder))
        shutil.copytree(place / folder, tmp_path / folder)
        for file in files:
            path = tmp_path / folder / file
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n") + b"\n")
        after = vars(open_benchmark(name, tmp_path / folder))
        for one in ("ids", "names", "queries"):
            assert before.get(one) == after.get(one)
        for one in ("labels", "shown", "answers"):
            assert np.array_equal(before.get(one), after.get(one))


def test_a_sentence_that_stands_there_twice_has_a_name_of_its_own(place: Path, tmp_path: Path) -> None:
    """Else results would pair its second row with the first one's."""
    root = miniatures.ek100(tmp_path / "EK100", relevancy=False)
    path = root / SENTENCES
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert open_benchmark("ek100_mir", root).sentence_ids[-2:] == ("P02_03_2", "P02_03_2#2")


def open_benchmark(name: str, root: Path) -> Any:
    from lavila_fast.exams.benchmarks import find_benchmark

    return find_benchmark(name).open(DataFolder(root), PROTOCOLS[name]["zero-shot"])


def test_nothing_left_to_ask(place: Path) -> None:
    from lavila_fast.exams.ego4d_annotations import open_ego_mcq

    protocol = PROTOCOLS["ego_mcq"]["zero-shot"]
    exam = open_ego_mcq(DataFolder(place / "Ego4D"), protocol).of([0])
    with pytest.raises(InputError, match="each question lacks one of its clips"):
        exam.tables(protocol, Seen(np.zeros((1, 1, 4)), embed=lambda texts: np.zeros((len(texts), 4), np.float32)))


def about(model: str) -> dict[str, Any]:
    return {"benchmark": "egtea", "model": model}


def test_features_of_another_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path, about("a"))
    store.add({name: np.ones((1, 4), np.float32) for name in "xyz"})
    np.savez(store.folder / "foreign.npz", ids=np.array(["x"]), values=np.zeros((1, 1, 9)))
    np.savez(store.folder / "scalar.npz", ids=np.array(5), values=np.zeros(()))
    (store.folder / "empty.npz").write_bytes(b"")
    again = FeatureStore(tmp_path, about("a"))
    assert "1 values of another form are not taken" in capsys.readouterr().err
    assert again.take(["y"]).tolist() == [[[1.0] * 4]]
    with pytest.raises(InputError, match="holds values of another form than this model's; give another --features"):
        again.add({"w": np.zeros((1, 5), np.float32)})
    assert len(FeatureStore(tmp_path, about("b"))) == 0


def test_results_that_are_none(tmp_path: Path) -> None:
    table = {"id": ["a", "b"], "label": [0, 1], "told": [0, 1], "in_5": [1, 1]}
    good = {"format": 1, "benchmark": "egtea", "protocol": {}, "model": {}, "data": {}, "scores": {}, "published": []}

    def result(**columns: Any) -> Path:
        path = tmp_path / "r.json"
        path.write_text(json.dumps({**good, "tables": {"clips": table | columns}}))
        return path

    mine = read_result(result())
    for columns in ({"label": [0]}, {"id": [["a"], ["b"]]}, {"id": 3}):
        with pytest.raises(InputError, match="not a result of `lavila-fast eval`"):
            read_result(result(**columns))
    with pytest.raises(InputError, match="the tables of one result are not those of egtea"):
        compare(mine, read_result(result(in_5=["often", "never"])))
