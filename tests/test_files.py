"""Files are written whole or not at all, reach the disk, and leave nothing beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavila_fast.errors import StorageError
from lavila_fast.files import new_file, no_links, replacing, write_json, write_text


def test_a_crash_in_between_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half of it", None])
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_content_and_name_reach_the_disk_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((Path(f"/proc/self/fd/{fd}").readlink(), path.exists())))
    path = tmp_path / "a"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert [(name.is_dir(), there) for name, there in synced] == [(False, False), (True, True)]
    assert synced[1][0] == tmp_path


def test_no_link_is_followed_and_no_name_foreseen(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    names = []
    for _ in range(2):
        with new_file(tmp_path / "a") as part:
            names.append(part.name)
            part.symlink_to(victim)
            with pytest.raises(OSError, match="symbolic links"), open(part, "wb", opener=no_links):
                pass
            part.unlink()
            part.write_text("new")
    assert names[0] != names[1]
    with pytest.raises(OSError, match="symbolic links"), new_file(tmp_path / "a") as part:
        part.symlink_to(victim)
    (tmp_path / "link").symlink_to(victim)
    write_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 251 + ".srt", "é" * 125 + ".json", "🎬" * 63])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "a")
    write_text(tmp_path / name, "b")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "b")]
    with pytest.raises(StorageError, match="give a shorter name"):
        write_text(tmp_path / (name + "xxxxx"), "a")


def test_a_failed_rename_removes_the_part_and_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "full").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"a: cannot be written \(.*\); take another one$"):
        write_text(folder, "a file cannot take a folder's name", "take another one")
    assert list(tmp_path.iterdir()) == [folder]


def test_writers_that_open_files_themselves(tmp_path: Path) -> None:
    with new_file(tmp_path / "a.pt2", ".pt2") as part:
        assert part.parent == tmp_path
        assert (part.name[0], part.suffix) == (".", ".pt2")
        part.write_bytes(b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt2"]
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "b"):
        pass  # a writer that wrote nothing


WRITER = """
import sys
from pathlib import Path
from lavila_fast.files import new_file, no_links
with new_file(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    print(part.name, flush=True)
    sys.stdin.read()
"""


def a_writer(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of writing `path`, and its part."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, path.with_name(process.stdout.readline().strip())


@pytest.mark.skipif(sys.platform == "win32", reason="locks on folders")
def test_what_a_killed_process_left_of_a_file_goes_with_the_next_writing(tmp_path: Path) -> None:
    killed, part = a_writer(tmp_path / "a")
    killed.kill()
    killed.communicate()
    other = tmp_path / ".a.b.1.part"
    other.touch()
    assert part.is_file()
    write_text(tmp_path / "a", "whole")
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "a"]


def test_the_part_of_a_process_at_work_stays(tmp_path: Path) -> None:
    other, part = a_writer(tmp_path / "a")
    write_text(tmp_path / "a", "mine")
    assert part.read_bytes() == b"half"
    other.communicate("")
    assert other.returncode == 0
    assert (tmp_path / "a").read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
