"""Clip lists in every format, and what a hostile or broken one does."""

from __future__ import annotations

import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila_fast.errors import InputError
from lavila_fast.records import Clip
from lavila_fast.video.lists import MAX_LINE, read_list

TWO = [Clip("a", 1.0, 2.5), Clip("b c", 0.0, 61.25)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "video,start,end\na,1,2.5\nb c,0,61.25\n"),
        ("c.csv", "\ufeffid,video_uid,Start_Second, end_second \n7,a,1.0,2.5\n8,b c,0,0:01:01.25\n"),
        (
            "c.jsonl",
            '{"video": "a", "start": 1, "end": 2.5}\n\n{"uid": "b c", "start_sec": 0, "end_sec": "61.25", "x": []}',
        ),
    ],
)
def test_text_lists(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert list(read_list(path)) == TWO


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("number", [float, np.float64, np.float32, lambda x: x])
def test_the_originals_pickle(tmp_path: Path, protocol: int, number: Any) -> None:
    rows = [("a", number(1), number(2.5), "#C C cuts"), ("b c", number(0), number(61.25), ["x", "y"], [0.5, 0.25])]
    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps(rows, protocol))
    assert list(read_list(path)) == TWO


def test_numpy_integers_in_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps((("a", np.int64(3), np.dtype(">i4").type(300)), ["b", np.uint8(1), 2]), 4))
    reader = read_list(path)
    with pytest.raises(InputError, match="numpy values other than"):
        next(reader)
    path.write_bytes(pickle.dumps([("a", np.int64(3), np.int32(300))], 4))
    assert list(read_list(path)) == [Clip("a", 3.0, 300.0)]


class Attack:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.flag),)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps([("a", 0, 1), Attack(tmp_path / "flag")]))
    with pytest.raises(InputError, match="not loaded for safety"):
        list(read_list(path))
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.csv", b"", "empty"),
        ("c.csv", b"video,start,end\na,0,1\na,x,1\n", "line 3: start 'x'"),
        ("c.csv", b"video,start,end\na,0\n", "line 2: no 'end'"),
        ("c.csv", b"video,start,end\na,2,1\n", "line 2: start 2 and end 1"),
        ("c.csv", b"video,start,end\na,nan,1\n", "line 2"),
        ("c.csv", b"video,start,end\n ,0,1\n", "line 2: the video's name"),
        ("c.csv", b"a,0,1\n", None),
        ("c.csv", b"video,start,end\n\xff\xfe,0,1\n", "not UTF-8"),
        ("c.jsonl", b'{"video": "a", "start": 0, "end": 1}\n{"video"', "line 2: not JSON"),
        ("c.jsonl", b"[1, 2]\n", "line 1: not an object"),
        ("c.jsonl", b'{"video": "a", "start": true, "end": 1}\n', "line 1"),
        ("c.pkl", b"no pickle", "not a readable list"),
        ("c.pkl", pickle.dumps([("a", 0, 1)])[:-3], "not a readable list"),
        ("c.pkl", pickle.dumps({"a": 1}), "holds a dict"),
        ("c.pkl", pickle.dumps([("a", 0, 1), ("a", 0)]), "row 2"),
        ("c.pkl", pickle.dumps([("a", np.zeros(3), 1)]), "not loaded for safety"),
        ("c.txt", b"", "a clip list is one of"),
    ],
)
def test_broken_lists_say_where(tmp_path: Path, name: str, content: bytes, says: str | None) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if says is None:  # a header alone that happens to be data: no rows, nothing to narrate
        assert list(read_list(path)) == []
        return
    with pytest.raises(InputError) as caught:
        list(read_list(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
def test_only_a_newline_ends_a_row(tmp_path: Path, name: str) -> None:
    videos = ["a\u2028b", "c\u0085d", "e\x0cf"]
    if name == "c.csv":
        text = "video,start,end\n" + "".join(f"{video},0,1\n" for video in videos)
    else:
        rows = [{"video": video, "start": 0, "end": 1} for video in videos]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [clip.video for clip in read_list(tmp_path / name)] == videos


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(read_list(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", b"video;start;end\na;1;2,5\nb c;0,0;00:01:01,25\n"),
        ("c.csv", b"video\tstart\tend\na\t1\t2,5\nb c\t0\t61.25\n"),
        ("c.csv", b'video,start,end\na,1,"2,5"\nb c,0,"0:01:01,25"\n'),
        ("c.csv", b"video;start;end;said\na;1;2.5;one, two\nb c;0;61.25;x\n"),
        ("c.csv", "video,start,end\r\na,1,2.5\r\n\r\nb c,0,61.25\r\n".encode("utf-16")),
        ("c.csv", "\ufeffvideo\tstart\tend\na\t1\t2.5\nb c\t0\t61.25\n".encode("utf-16-be")),
        (
            "c.jsonl",
            '{"video": "a", "start": 1, "end": "2,5"}\n{"video": "b c", "start": "0", "end": "1:01.25"}'.encode(
                "utf-16"
            ),
        ),
    ],
)
def test_lists_as_spreadsheets_write_them(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_list(tmp_path / name)) == TWO


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a,00:00:00,00:00:02,500", "line 3: 4 fields, but the first line names 3, separated by commas"),
        ("a,1,5,4,5", "line 3: 5 fields"),
        ("a,1,5,", "line 3: 4 fields"),
        ('a,"1,500","2,500"', "line 3: start '1,500'"),
        ("a,00:00:01:12,00:00:03:00", "line 3: start '00:00:01:12'"),
        ("a,00:00:01;12,00:00:03;00", "line 3"),
        ("a,1:-58,1:-55", "line 3: start '1:-58'"),
        ("a,0_2,0_4", "line 3: start '0_2'"),
        ("a,0:75,0:80", "line 3"),
        ("a,0:99:00,2:00:00", "line 3"),
        ("a,0x1,0x2", "line 3"),
        ("a,\u0661,\u0662", "line 3"),
        ("a,1e400,1e401", "line 3"),
        ("a,1.0001,1.0004", "line 3: start 1.0001 and end 1.0004 are the same millisecond"),
        ('a,0,"1', "line 3: not CSV"),
    ],
)
def test_what_is_unclear_is_refused_with_its_line(tmp_path: Path, row: str, says: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(f"video,start,end\na,0,1\n{row}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        list(read_list(path))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"video": "a", "start": "00:00:01:12", "end": "00:00:03:00"}', "line 1: start '00:00:01:12'"),
        ('{"video": "a", "start": 0, "end": 1%s}' % ("0" * 400), "line 1: start and end must be"),
        ('{"video": "a", "start": [[0]], "end": 1}', "line 1: start and end must be"),
        ('{"video": "a", "start": NaN, "end": 1}', "line 1"),
        ('{"video": {"a": 1}, "start": 0, "end": 1}', "line 1: the video's name"),
    ],
)
def test_json_is_read_as_strictly(tmp_path: Path, row: str, says: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(row)
    with pytest.raises(InputError) as caught:
        list(read_list(path))
    assert says in str(caught.value)


def test_columns_that_are_named_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("video,start,end,start\na,0,1,2\n")
    with pytest.raises(InputError, match="line 1: a column is named twice"):
        list(read_list(path))
    path.write_bytes("video,start,end\na,0,1\n".encode("utf-16-le"))  # no mark says so
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_list(path))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\x00\x00\x00\x40.",  # a place in a table of 16 GB
        b"]p1073741824\n.",
        b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b".",  # 8 GB of zeros
        b"\x80\x05\x8e" + (1 << 33).to_bytes(8, "little") + b".",
        b"\x80\x04\x95" + (1 << 33).to_bytes(8, "little") + b"].",
        b"\x80\x04\x8b\xff\xff\xff\x7f.",
    ],
)
def test_a_few_bytes_do_not_take_gigabytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pkl"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="not a readable list"):
        list(read_list(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_what_nests_is_not_unfolded(tmp_path: Path) -> None:
    nested: Any = "x" * 100
    for _ in range(40):
        nested = [nested, nested]
    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps([("a", nested, 1)]))
    with pytest.raises(InputError, match="row 1: start and end must be seconds"):
        list(read_list(path))


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl"])
def test_a_list_without_end_is_not_read_to_its_end(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="not a file"):
        list(read_list(tmp_path / name))
    long = tmp_path / f"long{name}"
    long.write_bytes(b'{"video": "a' + b"x" * (MAX_LINE + 10))
    with pytest.raises(InputError, match="line 1: longer than"):
        list(read_list(long))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_list(tmp_path / ("y" * 300 + name)))
