"""`lavila-fast models`, run as a user runs it, with mirrors served from this machine."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result

from lavila_fast.cli.models import models
from lavila_fast.config import NarratorConfig, from_dict
from lavila_fast.errors import DownloadError, InputError, LavilaError, ModelNotFoundError
from lavila_fast.presets import CHECKPOINTS, PRETRAINED, VARIANTS
from lavila_fast.pretrained import find_model

FILES = Path(
    os.environ.get("LAVILA_TOKENIZER_DIR") or Path(__file__).resolve().parent.parent.parent / "shared" / "tokenizers"
)
THIRD_PERSON = CHECKPOINTS["narrator-third-person"]


def run(*args: str) -> Result:
    result = CliRunner().invoke(models, list(args))
    if isinstance(result.exception, LavilaError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    server.server_close()


def put(folder: Path, relative: str, data: bytes) -> None:
    (folder / relative).parent.mkdir(parents=True, exist_ok=True)
    (folder / relative).write_bytes(data)


def test_list_marks_what_is_here(home: Path) -> None:
    put(home, CHECKPOINTS["egovlp"].relative, b"weights")
    put(home, PRETRAINED["gpt2"].relative, b"weights")
    released, starts = run("list").stdout.split("\nTo begin training with:\n")
    assert len(released.splitlines()) == len(CHECKPOINTS) == 21
    assert len(starts.splitlines()) == len(PRETRAINED) == 6
    assert [line.split()[1] for line in released.splitlines() if line.startswith("*")] == ["nano", "egovlp"]
    assert [line.split()[1] for line in starts.splitlines() if line.startswith("*")] == ["gpt2"]


def test_list_json() -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert rows["narrator-base"]["md5_prefix"] == "68a71f"
    assert rows["narrator-base"]["kind"] == "narrator"
    assert not rows["narrator-base"]["present"]
    assert rows["nano"]["present"]
    assert rows["ek100-action-base"]["kind"] == "classifier"
    assert rows["clip-vit-b-16"]["kind"] == "clip"
    assert not rows["clip-vit-b-16"]["present"]


def test_show_json_has_config_address_and_places(home: Path) -> None:
    about = json.loads(run("show", "narrator-large", "--json").stdout)
    config = from_dict(about["config"])
    assert isinstance(config, NarratorConfig)
    assert (config.vision.img, config.text.n_embd) == (336, 1600)
    assert about["path"] == str(home / CHECKPOINTS["narrator-large"].relative)
    assert [Path(file["path"]).name for file in about["tokenizer_files"]] == ["vocab.json", "merges.txt"]
    assert not any(file["present"] for file in about["tokenizer_files"])


def test_show_for_readers(tmp_path: Path) -> None:
    shown = run("show", "dual-base", "--dir", str(tmp_path)).stdout
    assert "md5sum_d73a9c.pth" in shown
    assert str(tmp_path / "tokenizers" / "clip" / "bpe_simple_vocab_16e6.txt.gz") in shown
    assert '"patch": 16' in shown
    assert "49408" in run("show", "CLIP_OPENAI_TIMESFORMER_BASE").stdout


@pytest.mark.parametrize("command", ["show", "pull"])
def test_unknown_name_is_answered_with_near_ones(command: str) -> None:
    with pytest.raises(InputError, match="did you mean narrator-base"):
        run(command, "narator-base")


def test_variant_has_no_weights() -> None:
    with pytest.raises(InputError, match="variant without weights"):
        run("pull", "CLIP_OPENAI_TIMESFORMER_BASE")


def test_shipped_model_needs_no_fetch(home: Path) -> None:
    assert "comes with the package" in run("pull", "nano").stdout
    assert not home.exists()


@pytest.mark.skipif(not FILES.is_dir(), reason=f"no published vocabularies in {FILES} (set LAVILA_TOKENIZER_DIR)")
def test_pull_from_a_mirror(mirror: tuple[str, Path], tmp_path: Path) -> None:
    base, folder = mirror
    name = THIRD_PERSON.relative.removeprefix("checkpoints/")
    put(folder, f"narrator/htm_aa/{name}", b"PK\x03\x04 weights")
    for file in ("vocab.json", "merges.txt"):
        put(folder, f"tokenizers/gpt2/{file}", b"")
        shutil.copyfile(FILES / f"gpt2-{file}", folder / "tokenizers" / "gpt2" / file)
    result = run("pull", THIRD_PERSON.name, "--dir", str(tmp_path / "here"), "--url-base", base)
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert [path.relative_to(tmp_path / "here").parts[0] for path in paths] == [
        "checkpoints",
        "tokenizers",
        "tokenizers",
    ]
    assert paths[0].read_bytes() == b"PK\x03\x04 weights"
    assert "no checksum" in result.stderr
    assert json.loads(run("show", THIRD_PERSON.name, "--dir", str(tmp_path / "here"), "--json").stdout)["present"]


def test_pull_removes_a_file_with_another_checksum(mirror: tuple[str, Path], home: Path) -> None:
    base, folder = mirror
    row = CHECKPOINTS["narrator-base"]
    put(folder, "narrator/" + row.relative.removeprefix("checkpoints/"), b"something else")
    with pytest.raises(DownloadError, match=r"md5:68a71f expected.*removed"):
        run("pull", "narrator-base", "--url-base", base)
    left = list((home / "checkpoints").iterdir())
    assert all(path.name.startswith(".") and path.suffix == ".lock" and not path.stat().st_size for path in left)


def test_pull_of_a_file_the_mirror_lacks_says_what_to_do(mirror: tuple[str, Path], home: Path) -> None:
    with pytest.raises(DownloadError, match="404") as caught:
        run("pull", "narrator-base", "--url-base", mirror[0])
    assert f"put it at {home / CHECKPOINTS['narrator-base'].relative}" in str(caught.value)


def test_file_put_by_hand_is_checked(home: Path) -> None:
    put(home, CHECKPOINTS["narrator-base"].relative, b"cut short")
    with pytest.raises(DownloadError, match="not the file it should be"):
        run("pull", "narrator-base")


def test_what_training_begins_with_is_shown(home: Path) -> None:
    about = json.loads(run("show", "distilbert-base-uncased", "--json").stdout)
    assert about["path"] == str(home / "pretrained" / "distilbert-base-uncased.safetensors")
    assert [Path(file["path"]).name for file in about["tokenizer_files"]] == ["vocab.txt"]
    assert "config" not in about
    shown = run("show", "clip-vit-b-16").stdout
    assert PRETRAINED["clip-vit-b-16"].url in shown
    assert "bpe_simple_vocab_16e6.txt.gz  (not here)" in shown


def test_what_training_begins_with_is_fetched_and_checked(mirror: tuple[str, Path], home: Path) -> None:
    base, folder = mirror
    put(folder, PRETRAINED["gpt2"].relative, b"something else")
    with pytest.raises(DownloadError, match=r"sha256:248dfc39\w{56} expected.*removed"):
        run("pull", "gpt2", "--url-base", base)
    assert not (home / PRETRAINED["gpt2"].relative).exists()


def test_what_training_begins_with_is_no_model() -> None:
    with pytest.raises(InputError, match="did you mean gpt2"):
        run("show", "gpt-2")
    with pytest.raises(ModelNotFoundError, match="gpt2: what training begins with, no model; "):
        find_model("gpt2")


def test_convert(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from lavila_fast.models.load import load_narrator
    from lavila_fast.models.narrator import NarratorModel

    torch.manual_seed(0)
    config = VARIANTS["NANO_NARRATOR"]
    assert isinstance(config, NarratorConfig)
    state = NarratorModel(config).state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    out = tmp_path / "a.safetensors"
    result = run("convert", str(tmp_path / "a.pth"), "-o", str(out), "--variant", "NANO_NARRATOR")
    assert result.stdout.strip() == str(out)
    again = load_narrator(out).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in state.items())


def test_convert_of_a_missing_file_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    with pytest.raises(LavilaError, match=r"gone\.pth"):
        run("convert", str(tmp_path / "gone.pth"), "-o", str(tmp_path / "out"))


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    assert all(command in shown for command in ("list", "show", "pull", "convert"))
