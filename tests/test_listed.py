"""A list of one's own: whatever it leaves out, whatever is wrong in it, and the frames that its rows stand for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_video_coded import numbers, write_video

from lavila_fast.errors import InputError, VideoError
from lavila_fast.train.datasets.listed import HELD_OUT, Listed, read_listed
from lavila_fast.train.datasets.samples import Folder, Footage
from lavila_fast.video.reader import read_frames


def look(file: str) -> Footage:
    """Any file: 100 frames at 25 a second."""
    return Footage(100, 25.0)


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def listed(path: Path, *lines: str, split: str = "train") -> Listed:
    return Listed.read(written(path / "mine.csv", *lines), look, 4, split)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "day").mkdir()
    write_video(folder / "day" / "a.mp4", 100, 25)
    write_video(folder / "b.mkv", 60, 30)
    return folder


def test_frames_are_the_middles_of_equal_parts_at_the_file_s_own_rate(videos: Path, tmp_path: Path) -> None:
    path = written(
        tmp_path / "mine.csv",
        "video,start,end,text,split",
        "day/a,1,3,#C C runs,train",
        "b.mkv,0:00:01,,#C C sits,train",
        "day/a.mp4,,,all of it,train",
    )
    found = Listed.read(path, Folder(videos), 4)
    assert len(found) == 3
    shown = []
    for index in range(3):
        (read,) = found.sample(index).reads
        shown.append(numbers(read_frames(videos / read.file, read.frames)))
    # Middles of [25, 75), [30, 60) and [0, 100), each in four.
    assert shown == [[31, 43, 55, 68], [33, 40, 48, 55], [12, 37, 62, 86]]
    assert [found.sample(i).text for i in range(3)] == ["#C C runs", "#C C sits", "all of it"]
    found.check()
    drawn = found.sample(0, np.random.default_rng(1)).reads[0].frames
    assert all(25 + 12 * i <= frame <= 25 + 13 * (i + 1) for i, frame in enumerate(drawn))
    assert found.sample(0, np.random.default_rng(1)) == found.sample(0, np.random.default_rng(1))


def test_names_of_classes_are_sorted_and_the_same_for_all_splits(tmp_path: Path) -> None:
    lines = ["video,label,split", "a,pour,train", "b,cut,train", "c,stir,val", "d,cut,val"]
    train, val = listed(tmp_path, *lines), listed(tmp_path, *lines, split="val")
    assert train.classes == val.classes == ("cut", "pour", "stir")
    assert [train.sample(i).label for i in range(2)] == [1, 0]
    assert [val.sample(i).label for i in range(2)] == [2, 0]
    assert val.sample(1).text == "cut"


def test_numbers_are_the_classes_themselves(tmp_path: Path) -> None:
    found = listed(tmp_path, "video,label,text,split", "a,10,x,train", "b,02,y,train", "c,0,z,train")
    assert found.classes == tuple(map(str, range(11)))
    assert [found.sample(i).label for i in range(3)] == [10, 2, 0]
    assert found.sample(0).text == "x"


def test_jsonl_with_several_texts(tmp_path: Path) -> None:
    rows = [{"video": "a", "start": 0, "end": 2.5, "text": ["one", "two"], "split": "train"}]
    path = written(tmp_path / "mine.jsonl", *map(json.dumps, rows))
    found = Listed.read(path, look, 4)
    assert found.sample(0).text == "one"
    assert {found.sample(0, np.random.default_rng(i)).text for i in range(20)} == {"one", "two"}


def test_a_tenth_of_the_videos_is_held_out_by_name(tmp_path: Path) -> None:
    names = [f"v{i // 2}" for i in range(2000)]
    rows = read_listed(written(tmp_path / "mine.csv", "video,text", *(f"{name},said" for name in names)))
    split = {name: row.split for name, row in zip(names, rows, strict=True)}
    assert all(split[name] == row.split for name, row in zip(names, rows, strict=True))  # a video is on one side
    assert abs(sum(one == "val" for one in split.values()) / len(split) - HELD_OUT) < 0.03
    some = read_listed(written(tmp_path / "some.csv", "video,text", *(f"{name},said" for name in names[500:700])))
    assert [row.split for row in some] == [split[name] for name in names[500:700]]  # whichever others there are


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ((), r"mine\.csv: empty; its first line must name the columns"),
        (("video,start,end,text",), r"mine\.csv: holds no clips; below a line"),
        (("video,start,end", "a,0,1"), r"line 2: neither a text nor a label; give a column text or label"),
        (("clip,text", "a,said"), r"line 2: no video; name its file in the column"),
        (("video,start,end,text", "a,2,1,said"), r"line 2: start 2 and end 1 make no clip"),
        (("video,start,end,text", "a,2,2,said"), r"line 2: start 2 and end 2 make no clip"),
        (("video,start,end,text", "a,-1,2,said"), r"line 2: start -1 and end 2 make no clip"),
        (("video,start,end,text", "a,soon,2,said"), r"line 2: start soon is not seconds or hh:mm:ss"),
        (("video,text", "a,x", "../b,said"), r"line 3: \.\./b leads out of the data's folder"),
        (("video,text", "/etc/b,said"), r"line 2: /etc/b leads out"),
        (("video,text,split", "a,x,dev"), r"line 2: split dev is none; write train, val or test"),
        (("video,text,split", "a,x,val"), r"mine\.csv: none of its 1 clips is for train"),
        (("video,label,split", "a,-1,train"), r"line 2: label -1 is out of range"),
        (("video,label,split", "a,100000,train"), r"line 2: label 100000 is out of range; number classes"),
        (("video,label,text,split", "a,x,y,train", "b,,y,train"), r"line 3: no label, where other lines have one"),
        (("video,start,end,text", "a,1,2,said,more"), r"line 2: 5 fields, but the first line names 4"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, lines: tuple[str, ...], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        listed(tmp_path, *lines)
    assert "\n" not in str(caught.value)


def test_other_values_of_jsonl(tmp_path: Path) -> None:
    for row, why in (
        ({"video": "a", "text": 5}, "text 5 is no text"),
        ({"video": "a", "label": 1.5}, r"label 1\.5 is neither a name nor a whole number"),
        ({"video": "a", "label": True}, "label True is neither"),
        ({"video": 5, "text": "x"}, "no video"),
    ):
        with pytest.raises(InputError, match=rf"line 1: {why}"):
            read_listed(written(tmp_path / "mine.jsonl", json.dumps(row)))
    with pytest.raises(InputError, match=r"a clip list is one of \.csv, \.jsonl, \.ndjson"):
        read_listed(written(tmp_path / "mine.pkl", ""))


def test_a_video_that_is_not_there_and_one_that_is_too_short(videos: Path, tmp_path: Path) -> None:
    path = written(
        tmp_path / "mine.csv", "video,start,end,text,split", "day/a,5,6,late,train", "c,0,1,gone,train", "c,1,2,x,train"
    )
    found = Listed.read(path, Folder(videos), 4)
    with pytest.raises(VideoError, match=r"day/a\.mp4: ends at 4\.000 s, before the clip of .*line 2 begins; mend"):
        found.sample(0)
    with pytest.raises(VideoError, match=r"c\.mp4: does not exist"):
        found.sample(1)
    with pytest.raises(InputError, match=r"line 3: .*c\.mp4: does not exist; check --data"):
        found.check()
    assert [row.where.rpartition(" ")[2] for row, _ in found.missing()] == ["3"]


def test_a_video_that_has_become_an_mp4_is_found_by_its_old_name(videos: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.csv", "video,text,split", "day/a.mov,said,train")
    assert Listed.read(path, Folder(videos), 4).sample(0).reads[0].file == "day/a.mp4"
