"""Whatever a model says and whenever: every format stays what it is, read by readers that share no code with ours."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lavila_fast.archive.formats import FORMATS
from lavila_fast.archive.formats.writer import NOTHING
from lavila_fast.archive.journals.rows import parse_row
from lavila_fast.records import Narration
from lavila_fast.shown import shown, shown_lines

NASTY = [
    "",
    " ",
    "\n\n",
    "-->",
    "00:00:01,000 --> 00:00:02,000",
    "7",
    "a\rb",
    "a\r\n\r\nb",
    "a\u2028b\u2029c\x85d",
    "\x1b[2Jx\x9b31m\x7f",
    "\u202egnp.exe",
    "=HYPERLINK(1)",
    '"quoted", with comma',
    "NOTE",
    "WEBVTT",
    "\x00",
    "caf\udce9",
    "<b>&amp;",
    "🎬 é",
    "'",
]
TEXTS = st.one_of(st.sampled_from(NASTY), st.text(), st.text(alphabet="\r\n\t\x1b\x85\u2028>- 0123:,\"'="))
SPANS = st.tuples(st.floats(0, 1e6), st.floats(0.0001, 1e4)).map(lambda times: (times[0], times[0] + times[1]))
CLIPS = st.lists(st.tuples(SPANS, st.lists(TEXTS, min_size=1, max_size=4)), min_size=1, max_size=5)
TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)%s(\d{3})"
Said = list[tuple[tuple[float, float], list[str]]]


def written(format: str, clips: Said, video: str = "a.mp4", safe: bool = False) -> bytes:
    row = FORMATS[format]
    writer = row.safe if safe else row.writer
    assert writer is not None
    file = io.BytesIO()
    narrations = [
        [Narration(video, *span, sample, text, 12.5, -1.25) for sample, text in enumerate(texts)]
        for span, texts in clips
    ]
    writer().write(narrations, file)
    return file.getvalue()


def obeyed(text: str) -> list[str]:
    """What no terminal should be sent, but for line breaks and tabs."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        c
        for c in text
        if (unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") and c not in "\n\t")
        or unicodedata.bidirectional(c) in turning
    ]


def words(text: str) -> str:
    return "".join("" if obeyed(c) or c.isspace() else c for c in text)


def milliseconds(groups: Sequence[str]) -> int:
    hours, minutes, seconds, rest = map(int, groups)
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def cues(blocks: list[list[str]], point: str) -> list[tuple[int, int, list[str]]]:
    """Cues as a strict reader takes them: a line of times, then lines that are neither empty nor one of times."""
    line = re.compile(TIME % point + " --> " + TIME % point)
    found = []
    for times, *lines in blocks:
        match = line.fullmatch(times)
        assert match
        assert lines
        assert not any("-->" in text for text in lines)
        found.append((milliseconds(match.groups()[:4]), milliseconds(match.groups()[4:]), lines))
    return found


def read_srt(data: bytes) -> list[tuple[int, int, list[str]]]:
    text = data.decode()
    assert text.endswith("\n\n")
    assert text.splitlines() == text.split("\n")[:-1]  # no reader finds another line break
    blocks = [block.split("\n") for block in text[:-2].split("\n\n")]
    assert [block[0] for block in blocks] == [str(n + 1) for n in range(len(blocks))]
    return cues([block[1:] for block in blocks], ",")


def read_vtt(data: bytes) -> list[tuple[int, int, list[str]]]:
    head, *rest = data.decode()[:-2].split("\n\n")
    assert head == "WEBVTT"
    blocks = [block.split("\n") for block in rest]
    assert not any(re.search("<|>|&(?!amp;|lt;|gt;)", line) for block in blocks for line in block[1:])
    return [(start, end, [html.unescape(line) for line in lines]) for start, end, lines in cues(blocks, r"\.")]


@given(CLIPS)
@example([((1.0001, 1.0004), ["", ""])])
@example([((360_000.0, 400_000.0), list(NASTY))])
def test_subtitles_are_what_a_strict_reader_reads(clips: Said) -> None:
    for format, reader in (("srt", read_srt), ("vtt", read_vtt)):
        data = written(format, clips)
        assert not obeyed(data.decode())
        read = reader(data)
        assert len(read) == len(clips)
        for (start, end, lines), ((first, last), texts) in zip(read, clips, strict=True):
            assert start == round(first * 1000)
            assert end == max(round(last * 1000), start + 1)
            kept = [words(text) for text in texts if words(text)] or [NOTHING]
            assert [words(line).replace("-- >", "-->") for line in lines] == kept


@given(CLIPS, TEXTS)
def test_csv_and_json_lines_say_what_was_said(clips: Said, video: str) -> None:
    data = written("csv", clips, video)
    assert not obeyed(data.decode())
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    assert rows.pop(0) == ["video", "start", "end", "sample", "text", "perplexity", "logprob"]
    flat = [(span, sample, text) for span, texts in clips for sample, text in enumerate(texts)]
    for row, (span, sample, text) in zip(rows, flat, strict=True):
        assert (float(row[1]), float(row[2]), int(row[3]), row[5:]) == (*span, sample, ["12.5", "-1.25"])
        for cell, said in ((row[4], text), (row[0], video)):
            plain = said.replace("\r\n", "\n").replace("\r", "\n")
            assert cell == plain or obeyed(plain)
    lines = written("jsonl", clips, video).split(b"\n")
    assert lines.pop() == b""
    for line, (_, _, text) in zip(lines, flat, strict=True):
        assert line.decode().splitlines() == [line.decode()]
        assert not obeyed(line.decode())
        read = parse_row(line + b"\n")
        assert read is not None
        assert (read.text, read.video, json.loads(line)["text"]) == (text, video, text)


@given(TEXTS)
def test_no_cell_of_a_safe_table_is_a_formula(text: str) -> None:
    for said in (text, f"={text}", f" +{text}", f"\t-{text}", f"@{text}", f"\uff1d{text}"):
        data = written("csv", [((0.0, 2.0), [said])], said, safe=True)
        _, row = csv.reader(io.StringIO(data.decode(), newline=""))
        for cell in (row[0], row[4]):
            assert not re.match(r"[\s\x00-\x20]*[=+\-@＝＋－＠]", cell)
        plain = written("csv", [((0.0, 2.0), [said])], said)
        _, other = csv.reader(io.StringIO(plain.decode(), newline=""))
        assert row[4] in (other[4], f"'{other[4]}")


@pytest.mark.parametrize("text", NASTY)
def test_nothing_that_is_shown_is_obeyed(text: str) -> None:
    line = shown(text)
    assert not obeyed(line)
    assert "\n" not in line
    assert shown_lines(f"{text}\n{text}").count("\n") == 1 + 2 * text.count("\n")
    assert not obeyed(written("text", [((0.0, 2.0), [text])], text).decode())
