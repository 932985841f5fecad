"""What a run is given by mistake, by a crash or by somebody who means it harm: a line each, and nothing lost."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lavila_fast.cli.main import run  # noqa: E402
from lavila_fast.errors import CheckpointError, InputError, LavilaError, StorageError  # noqa: E402
from lavila_fast.files import locked, write_json  # noqa: E402
from lavila_fast.train.checkpoints import Checkpoints  # noqa: E402
from lavila_fast.train.datasets.charades import Classes, read_videos  # noqa: E402
from lavila_fast.train.datasets.ego4d import read_narrations  # noqa: E402
from lavila_fast.train.datasets.ek100 import read_segments  # noqa: E402
from lavila_fast.train.datasets.samples import Place  # noqa: E402
from lavila_fast.train.datasets.table import open_data  # noqa: E402
from lavila_fast.train.inputs import batch_share, length_of  # noqa: E402
from lavila_fast.train.launch import several  # noqa: E402
from lavila_fast.train.loader import LoadedBatches, loaded  # noqa: E402
from lavila_fast.train.portable import check_files, differing, read_state, write_state  # noqa: E402
from lavila_fast.train.prepare.manifest import parse_made, read_manifest  # noqa: E402
from lavila_fast.train.processes import averaged, gathered_lines, processes  # noqa: E402
from lavila_fast.train.recipe import with_settings  # noqa: E402
from lavila_fast.train.run_folder import RECIPE, refuse_used, run_folder  # noqa: E402
from lavila_fast.train.session import _in_a_line  # noqa: E402
from lavila_fast.train.watch import Watch, read_log  # noqa: E402
from lavila_fast.train.zoo import find_recipe  # noqa: E402

SETTINGS = {
    "lr=NaN": "no finite number",
    "lr=1e400": "no finite number",
    "lr=" + "9" * 400: "too large",
    "lr=" + "[" * 100_000: "lists within lists",
    "save_epochs=Infinity": "no finite number",
    "seed=-1": "seed from 0",
    "warmup_epochs=-1": "must not be negative",
    "evaluate_clips=-5": "must not be negative",
    "negatives=some": "give all or micro",
    "area=[0.5]": "a pair with a number each",
    'area=["a","b"]': "a pair with a number each",
    "freeze=[3]": "a list with a word each",
    "freeze={}": "a list with a word each",
    "optimiser.betas=[0.9]": "a pair with a number each",
    "optimiser.betas=[2,3]": "betas must be from 0 to below 1",
    "optimiser.eps=-1": "must not be negative",
    "optimiser.factors.visual.=abc": "names with a value each",
    'optimiser.factors={"visual.":-1}': "must not be negative",
    "optimiser=adamw": "such as optimiser.name",
    "regularisation=3": "such as regularisation.drop_path",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_another_kind_is_refused_in_a_line(setting: str) -> None:
    with pytest.raises(InputError, match=SETTINGS[setting]) as found:
        with_settings(find_recipe("pretrain_tsf_b"), [setting])
    assert len(str(found.value)) < 300


@pytest.mark.parametrize(
    ("name", "setting", "told"),
    [
        ("pretrain_tsf_b", 'task.temperature="x"', "temperature 'x' is of another kind.*a number or none"),
        ("pretrain_tsf_b", "task.normalize=maybe", "give true or false"),
        ("finetune_egtea_tsf_b", "task.classes=3", "a list with a whole number each"),
        ("finetune_egtea_tsf_b", "task.mixup=x", "give a number"),
    ],
)
def test_an_option_of_another_kind_is_refused(name: str, setting: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        batch_share(with_settings(find_recipe(name), [setting]), 1)


@pytest.mark.parametrize("options", [{"human": 3}, {"others": "one.pkl"}, {"every": 1.5}, {"choice": 1}])
def test_an_option_of_a_data_set_of_another_kind_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of another kind"):
        open_data("ego4d", options, Place(tmp_path, 4))


def test_what_is_right_is_taken() -> None:
    told = [
        "lr=1",
        "area=[0.1,1]",
        "freeze=video",
        "freeze=none",
        "optimiser.factors.visual.=0.5",
        "task.temperature=1",
    ]
    row = with_settings(find_recipe("pretrain_tsf_b"), told)
    assert (row.lr, row.area, row.freeze, row.optimiser.factors) == (1.0, (0.1, 1), (), {"visual.": 0.5})
    assert batch_share(row, 1)
    with pytest.raises(InputError, match="updates are more than"):
        length_of(with_settings(row, ["steps=1000000000000"]), 5000)


def test_a_run_has_its_folder_alone(tmp_path: Path) -> None:
    taken = StorageError("taken")
    other = run_folder(tmp_path / "run", True, False)
    with (
        run_folder(tmp_path / "run", False, False),
        pytest.raises(StorageError, match="another run is training into"),
        other,
    ):
        pass
    with locked(tmp_path / "run" / RECIPE, taken):  # it was let go of
        pass
    write_json(tmp_path / "run" / RECIPE, {})
    with pytest.raises(InputError, match="holds an earlier run"), run_folder(tmp_path / "run", False, False):
        pass
    with pytest.raises(StorageError, match="give a shorter name"):
        refuse_used(tmp_path / ("a" * 300), False, False)


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b"[1]\n", b"\xff\xfe\n", b'{"step": "x"}\n', b"[" * 100_000])
def test_a_torn_log_loses_no_other_line(torn: bytes, tmp_path: Path) -> None:
    watch = Watch(tmp_path, 9, 1, quiet=True)
    watch.write({"step": 1, "loss": 1.0})
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(torn)
    watch.write({"step": 3, "loss": 3.0})
    assert [row["step"] for row in read_log(tmp_path)] == [1, 3]


def test_a_plot_that_cannot_be_drawn_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.svg").mkdir()
    watch = Watch(tmp_path, 9, 1, quiet=True)
    watch.write({"step": 1, "loss": 1.0, "lr": "fast"})
    watch.close()
    assert "log.svg: cannot be written" in capfd.readouterr().err


def test_a_run_whose_reader_has_left_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stderr", os.fdopen(write, "w"))
    watch = Watch(tmp_path, 9, 1)
    watch.write({"step": 1, "validation": True, "loss": 1.0})
    watch.write_samples(1, [{"human": "a", "model": "b"}])
    assert len(read_log(tmp_path)) == 1
    with pytest.raises(BrokenPipeError):
        sys.stderr.close()


def checkpoint(folder: Path) -> Path:
    with Checkpoints(folder).writing(3) as part:
        (part / "weights.safetensors").write_bytes(b"weights")
        write_state(part, {"step": 3, "done": 3, "settings": {}})
    found = Checkpoints(folder).latest()
    assert found is not None
    return found


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    check_files(folder, read_state(folder))
    (folder / "weights.safetensors").write_bytes(b"weighus")
    with pytest.raises(CheckpointError, match=r"weights.safetensors: damaged.*remove .*step_00000003 to go on"):
        check_files(folder, read_state(folder))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors: missing"):
        check_files(folder, read_state(folder))


@pytest.mark.parametrize("steps", [{"step": "x"}, {"step": -1}, {"done": 1.5}, {"done": None}, {"step": True}])
def test_a_state_without_numbers_is_refused(steps: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **steps}))
    with pytest.raises(CheckpointError, match="counts no steps"):
        read_state(folder)


@pytest.mark.parametrize("note", ["[" * 100_000, '{"step": Infinity, "score": 1}', "[]", "{}", ""])
def test_a_damaged_note_of_the_best_is_a_line(note: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "best.json").write_text(note)
    with pytest.raises(CheckpointError, match="remove it to choose the best afresh"):
        Checkpoints(tmp_path).best()


def test_a_checkpoint_that_lies_elsewhere_is_let_go_of(tmp_path: Path) -> None:
    """Somebody has moved it to another disk, and left a link; or the link leads nowhere."""
    kept = checkpoint(tmp_path).rename(tmp_path / "elsewhere")
    folder = tmp_path / "checkpoints"
    (folder / "step_00000003").symlink_to(kept)
    (folder / "step_00000005").symlink_to(tmp_path / "nowhere")
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (4, 5, 6):
        with checkpoints.writing(step) as part:
            write_state(part, {"step": step, "done": step, "settings": {}})
    assert [path.name for path in folder.iterdir()] == ["step_00000006"]
    assert (kept / "weights.safetensors").is_file()


def test_settings_that_differ_are_named_in_short() -> None:
    (told,) = differing({"a": {"b": [1] * 10_000}}, {"a": {"b": 2}})
    assert told.startswith("a.b was [1, 1")
    assert told.endswith("…, is 2")
    assert len(told) < 200


@pytest.mark.parametrize("wrong", [{"file": "../one.mp4"}, {"file": "/one.mp4"}, {"seconds": math.nan}, {"start": -1}])
def test_a_row_of_a_table_that_cannot_be_is_none(wrong: dict[str, Any], tmp_path: Path) -> None:
    row: dict[str, Any] = dict.fromkeys(("file", "place", "how", "source", "source_id"), "one.mp4")
    row |= dict.fromkeys(("size", "frames", "width", "height", "start", "source_size", "source_mtime"), 1)
    row |= {"seconds": 1.0, "fps": 25.0, "last": True}
    assert parse_made(json.dumps(row).encode())
    assert parse_made(json.dumps({**row, **wrong}).encode()) is None
    assert parse_made(json.dumps({**row, "start": 10**400}).encode()) is None


def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.jsonl")
    with pytest.raises(InputError, match=r"manifest.jsonl: not a file; remove it"):
        read_manifest(tmp_path)


def test_processes_that_find_the_same_error_say_it_once(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = ["narrations", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "none.pkl")]
    assert several(2, told) != 0
    assert capfd.readouterr().err.count("error: ") == 1


NARRATIONS: dict[str, tuple[Any, ...]] = {
    "nan": ("one", math.nan, 1.0, "a"),
    "infinite": ("one", 0.0, math.inf, "a"),
    "huge": ("one", 0, 10**400, "a"),
    "absolute": ("/etc/passwd", 0.0, 1.0, "a"),
    "above": ("../one", 0.0, 1.0, "a"),
    "nul": ("o\0ne", 0.0, 1.0, "a"),
    "nameless": (" ", 0.0, 1.0, "a"),
}


@pytest.mark.parametrize("name", NARRATIONS)
def test_a_narration_of_nowhere_is_refused_with_its_row(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ego4d_train.pkl"
    path.write_bytes(pickle.dumps([("one", 0.0, 1.0, "a"), NARRATIONS[name]]))
    with pytest.raises(InputError, match=r"ego4d_train.pkl: row 1: .*(seconds|leads out)"):
        read_narrations(path)


HEAD = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class\n"
SEGMENTS = {
    "utf-16": ((HEAD + "a,P01,P01_01,0:0:0,0:0:1,a,0,0\n").encode("utf-16"), "no CSV in UTF-8"),
    "latin": (HEAD.encode() + b"a,P01,P01_01,0:0:0,0:0:1,caf\xe9,0,0\n", "no CSV in UTF-8"),
    "long": (HEAD.encode() + b"a" * (csv.field_size_limit() + 1), "no CSV in UTF-8"),
    "short": (HEAD.encode() + b"a,P01\n", "line 2: ends before its video_id"),
    "nan": (HEAD.encode() + b"a,P01,P01_01,0:0:nan,0:0:1,a,0,0\n", "line 2: times nan"),
    "nan after": (HEAD.encode() + b"a,P01,P01_01,0:0:0,0:0:nan,a,0,0\n", "line 2: times 0 and nan"),
    "before all": (HEAD.encode() + b"a,P01,P01_01,0:0:-3,0:0:1,a,0,0\n", "line 2: times -3 and 1"),
    "without beginning": (HEAD.encode() + b"a,P01,P01_01,0:0:0,0:0:-inf,a,0,0\n", "line 2: times 0 and -inf"),
    "above": (HEAD.encode() + b"a,..,P01_01,0:0:0,0:0:1,a,0,0\n", "line 2: .*leads out"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "EPIC_100_train.csv"
    content, told = SEGMENTS[name]
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"EPIC_100_train.csv: {told}"):
        read_segments(path)
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"a,P01,P01_01,0:0:0,0:0:1,a,0,0\n")  # of a spreadsheet
    assert len(read_segments(path)) == 1


CHARADES = {
    "short": ("x\n", "line 2: ends too early"),
    "above": ("../x,c000 0 1,3\n", "line 2: .*names no video"),
    "nan": ("x,c000 0 1,nan\n", "line 2: length 'nan'"),
    "no time": ("x,c000 0 1,0\n", "line 2: length '0'"),
    "blank": ('x," ; ",zz\n', "line 2: length 'zz'"),
}


@pytest.mark.parametrize("name", CHARADES)
def test_videos_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    (path := tmp_path / "one.csv").write_text("id,actions,length\n" + CHARADES[name][0])
    with pytest.raises(InputError, match=f"one.csv: {CHARADES[name][1]}"):
        read_videos(path, Classes({"c000": 0}, ("sit",)))


def test_what_prepare_is_given_by_mistake(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names without end, links in a circle, JSON without end."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "loop.mp4").symlink_to(tmp_path / "videos" / "loop.mp4")
    (tmp_path / "egomcq.json").write_text("[" * 100_000)
    given = [
        ["prepare", "list", "--data", str(tmp_path / ("a" * 300)), "-o", str(tmp_path / "out")],
        ["prepare", "list", "--data", str(tmp_path / "videos"), "-o", str(tmp_path / "videos" / "out"), "-q"],
        ["prepare", "ego4d", "--data", str(tmp_path), "--check-only"],
    ]
    for one, word in zip(given, ("no such folder", "symbolic links", "not the questions of EgoMCQ"), strict=True):
        assert run(one) != 0
        told = capfd.readouterr().err
        assert word in told
        assert "unexpected" not in told


def test_relevancies_that_fit_nothing_and_negative_classes_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "epic-kitchens-100-annotations"
    found = base / "retrieval_annotations"
    (found / "relevancy").mkdir(parents=True)
    (tmp_path / "video_ht256px").mkdir()
    row = "a,P01,P01_01,0:0:0,0:0:1,a,{},0\n"
    for part in ("train", "test"):
        (found / f"EPIC_100_retrieval_{part}.csv").write_text(HEAD + row.format(0))
        (found / f"EPIC_100_retrieval_{part}_sentence.csv").write_text("narration_id,narration\na,a\n")
    matrix = found / "relevancy" / "caption_relevancy_EPIC_100_retrieval_train.pkl"
    matrix.write_bytes(pickle.dumps(np.full((1, 1), math.nan)))
    with pytest.raises(InputError, match=r"retrieval_train.pkl: no sentence fits a"):
        open_data("ek100_mir", {}, Place(tmp_path, 4))
    for part in ("train", "validation"):
        (base / f"EPIC_100_{part}.csv").write_text(HEAD + row.format(-1))
    with pytest.raises(InputError, match="a has verb class -1"):
        open_data("ek100_cls", {}, Place(tmp_path, 4))


def test_a_list_that_names_a_column_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("video,start,end,text,text\na.mp4,0,1,hello,bye\n")
    with pytest.raises(InputError, match="a column is named twice"):
        open_data("listed", {}, Place(tmp_path / "mine.csv", 4))


def test_a_list_whose_videos_have_no_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("video,start,end,text\na.mp4,0,1,hello\n")
    with pytest.raises(InputError, match="none: no such folder of videos; give it with --videos"):
        open_data("listed", {}, Place(tmp_path / "mine.csv", 4, tmp_path / "none"))


class Hostile:
    """Items, or what becomes of them."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def __len__(self) -> int:
        return 8

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        if self.deed == "error":
            raise LavilaError("one.mp4: row 3 fits nothing; mend it")
        if self.deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "interrupt":  # as a terminal does
            os.kill(os.getpid(), signal.SIGINT)
        return [{"video": np.zeros(2, np.float32), "missing": []} for _ in keys]


def no_children() -> None:
    """See that readers end."""
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("deed", "told"),
    [("error", r"^one.mp4: row 3 fits nothing; mend it$"), ("die", r"reads videos has died.*--resume")],
)
def test_what_befalls_a_reader_is_a_line(deed: str, told: str) -> None:
    with pytest.raises(LavilaError, match=told) as found, _in_a_line():
        list(loaded(Hostile(deed), [[(0, 0)]], 1))  # type: ignore[arg-type]
    assert "Traceback" not in str(found.value)
    no_children()


def test_a_reader_leaves_interrupts_to_the_trainer() -> None:
    found = LoadedBatches(Hostile("interrupt"), 2, workers=1)  # type: ignore[arg-type]
    assert [len(found.batch(step).video) for step in range(3)] == [2, 2, 2]
    del found
    no_children()


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_memory_that_ends_is_a_line(error: BaseException) -> None:
    with pytest.raises(LavilaError, match=r"^out of memory .*--set micro=.*--resume"), _in_a_line():
        raise error
    with pytest.raises(RuntimeError, match="another"), _in_a_line():
        raise RuntimeError("another")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "x"}, "RANK is set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "ranks go from 0"),
    ],
)
def test_processes_that_were_started_wrongly(given: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told), processes(meeting=1):
        pass


def test_one_process_is_its_own_mean() -> None:
    found = averaged({"a": torch.tensor(2.0), "b": torch.tensor(math.nan)}, 1)
    assert found["a"] == 2
    assert math.isnan(found["b"])
    assert gathered_lines(["b", "a", "b"]) == ["b", "a"]


PROGRAM = """
import json, math, os, sys
sys.path.insert(0, {tests!r})
import torch
from test_train_contrastive import batch_of, dual
from lavila_fast.train.dual_tasks import MarginTask
from lavila_fast.train.engines import TorchEngine
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.processes import averaged, gathered_lines, processes
other = os.fork()  # torch is loaded once
own = "0" if other else "1"
os.environ.update(RANK=own, LOCAL_RANK=own, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
with processes() as (rank, world):
    lines = gathered_lines([["one", "both"], ["both", "two – zwei", "three"]][rank])
    numbers = averaged({{"own": torch.tensor([1.0, math.nan][rank]), "both": torch.tensor([1.0, 3.0][rank]),
                         "none": torch.tensor(math.nan)}}, world)
    engine = TorchEngine(MarginTask(dual()), Optimisation(), world)
    for _ in range(2):
        loss, _ = engine.module(batch_of())
        engine.backward(loss)
        engine.update(1e-3)
    if rank == 0:
        print(json.dumps([lines, numbers["own"], numbers["both"], math.isnan(numbers["none"])]))
if other:
    assert os.waitpid(other, 0)[1] == 0
"""


def test_two_processes_tell_each_other_what_only_one_has() -> None:
    """And margins, which no temperature has part in, are learnt by both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = [sys.executable, "-c", PROGRAM.format(tests=str(Path(__file__).parent)), str(port)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(told, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [["one", "both", "two – zwei", "three"], 1.0, 2.0, True]
