"""The soak: a little of it finds nothing, and what is planted for it to find is found."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from faults import ROOT

from lavila_fast.archive.formats import FORMATS
from lavila_fast.archive.journals import kinds
from lavila_fast.bench.soak import mutants, runs
from lavila_fast.bench.soak.bad_codecs import BadCodecs
from lavila_fast.bench.soak.cases import Plan, Tally, chance, each
from lavila_fast.bench.soak.damage import mutated
from lavila_fast.bench.soak.faults import Fault, Faults, Shim, compiled
from lavila_fast.bench.soak.films import KINDS
from lavila_fast.bench.soak.formats import TARGETS, WAYS, Formats, Target, kills_of
from lavila_fast.bench.soak.kills import Kills
from lavila_fast.bench.soak.mutants import Mutants
from lavila_fast.bench.soak.outputs import SETTINGS, Setting, lacks
from lavila_fast.errors import VideoError
from lavila_fast.video.children.pool import Children

JSONL = Setting("jsonl", False)
ROWS = [f'{{"video": "v.mp4", "start": {2 * i}.0}}\n'.encode() for i in range(4)]


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    library = compiled(tmp_path / "shim")
    if library is None:
        pytest.skip("no C compiler here")
    return Shim(library)


def spoil(path: Path, how: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(how(path.read_bytes().splitlines(keepends=True))))


# --- what is compared ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "ordered", "told"),
    [
        (ROWS, True, []),
        (ROWS[:-1], True, ["out.jsonl: 1 rows lost"]),
        ([*ROWS, ROWS[1]], True, ["out.jsonl: 1 rows doubled"]),
        ([*ROWS[:3], ROWS[3][:9]], True, ["out.jsonl: 1 rows lost", "out.jsonl: 1 rows that are none"]),
        (ROWS[::-1], True, ["out.jsonl: another order"]),
        (ROWS[::-1], False, []),
    ],
)
def test_rows_lost_doubled_and_torn_are_told(tmp_path: Path, rows: list[bytes], ordered: bool, told: list[str]) -> None:
    (tmp_path / "out.jsonl").write_bytes(b"".join(rows))
    assert lacks({"out.jsonl": b"".join(ROWS)}, tmp_path, replace(JSONL, in_order=ordered)) == told


def test_files_left_over_missing_or_undone_are_told(tmp_path: Path) -> None:
    (tmp_path / ".out.jsonl.part").write_bytes(b"")
    record = {"id": "x", "video": "v.mp4", "path": "/v.mp4", "status": "done", "clips": 5}
    others = [{**record, "video": "w.mp4"}, {**record, "video": "x.mp4"}]
    found = [{**record, "status": "partial", "code": "damaged"}, {**others[0], "clips": 4}]
    told, good = (b"".join(json.dumps(one).encode() + b"\n" for one in rows) for rows in (found, [record, *others]))
    (tmp_path / "out.jsonl.videos.jsonl").write_bytes(told)
    assert lacks({"out.jsonl": b"", "out.jsonl.videos.jsonl": good}, tmp_path, JSONL) == [
        ".out.jsonl.part is left over",
        "out.jsonl is missing",
        "x.mp4 is in no record",
        "v.mp4 is partial (damaged)",
        "w.mp4 is said to have 4 clips, not 5",
    ]


def test_every_format_is_among_the_settings() -> None:
    markers = {"edl", "fcpxml", "lerobot"}
    assert {one.format for one in SETTINGS} == {"jsonl", "csv", "srt", "vtt", "pkl", "parquet", *markers}


def test_every_format_is_killed_in_every_way() -> None:
    for kind in kinds.KINDS:
        for name in kind.offered():
            assert {one.way for one in TARGETS if (one.command, one.format) == (kind.command, name)} == set(WAYS)
    assert {one.format for one in TARGETS if one.command == "convert"} == {
        *(name for name, row in FORMATS.items() if row.offered),
        "webdataset",
    }
    for count in (1, 3, 20):
        kills = Counter[str]()
        for number, target in enumerate(TARGETS):
            kills[target.name] += kills_of(number, count)
        assert set(kills.values()) == {count}
    assert {TARGETS[i].way for i in range(len(TARGETS)) if kills_of(i, 1)} == set(WAYS)


def test_tables_are_compared_by_rows(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def written(values: list[int], **how: object) -> bytes:
        parquet.write_table(pyarrow.table({"x": values}), tmp_path / "out.parquet", **how)
        return (tmp_path / "out.parquet").read_bytes()

    expected = {"out.parquet": written([1, 2, 3])}
    assert written([1, 2, 3], row_group_size=1) != expected["out.parquet"]
    assert lacks(expected, tmp_path, JSONL) == []
    written([1, 3, 2])
    assert lacks(expected, tmp_path, JSONL) == ["out.parquet: 3 rows, not those 3"]
    parquet.write_table(pyarrow.table({"y": [1, 2, 3]}), tmp_path / "out.parquet")
    assert lacks(expected, tmp_path, JSONL) == ["out.parquet: other columns or settings"]
    (tmp_path / "out.parquet").write_bytes(b"PAR1")
    (told,) = lacks(expected, tmp_path, JSONL)
    assert told.startswith("out.parquet: cannot be read (")


def test_a_case_that_raises_is_a_violation_and_the_others_go_on(tmp_path: Path) -> None:
    tally = Tally("toy")

    def case(number: int) -> None:
        if number == 7:
            raise KeyError("a bug")

    each(Plan(tmp_path, 5, first=5, jobs=2), tally, case, lambda begun: begun < 5)
    assert tally.counts["cases"] == 5
    assert len(tally.violations) == 1
    assert tally.violations[0].startswith("toy --case 7: KeyError: 'a bug'")


# --- processes -------------------------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind_is_found_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_NARRATE", ["bash", "-c", "setsid sleep 600 & echo $! > number"])
    monkeypatch.setattr(runs, "_GONE", 0.5)
    ended = runs.narrate(tmp_path / "a", [])
    assert ended.unseemly() == ["1 of its processes are left"]
    command = Path("/proc", (tmp_path / "a" / "number").read_text().strip(), "cmdline")
    assert runs.until(lambda: not command.exists() or b"sleep" not in command.read_bytes(), 5)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import time; time.sleep(600)", "did not end in time"),
        ("raise KeyError('x')", "traceback: KeyError: 'x'"),
        ("import sys; sys.exit('error: unexpected KeyError: x')", "error: unexpected KeyError: x"),
        ("import os; os.write(2, b'Traceback\\nKeyboardInterrupt\\n')", None),
    ],
)
def test_how_a_run_may_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, told: str | None) -> None:
    monkeypatch.setattr(runs, "_NARRATE", [sys.executable, "-c", program])
    monkeypatch.setattr(runs, "_LONGEST", 2.0)
    assert runs.narrate(tmp_path / "a", []).unseemly() == ([told] if told else [])


@pytest.mark.skipif(sys.platform == "win32", reason="handles there are no numbers")
def test_a_worker_whose_run_is_killed_while_python_starts_it_says_so_at_length() -> None:
    here, there = os.pipe()
    os.close(there)
    program = f"from multiprocessing.spawn import spawn_main; spawn_main(pipe_handle={here})"
    start = [sys.executable, "-c", program, "--multiprocessing-fork"]
    with os.fdopen(here):
        told = subprocess.run(start, pass_fds=[here], capture_output=True, text=True).stderr
    assert "Traceback" in told
    ours = told.replace("EOFError", f'File "{runs.__file__}", line 3\nEOFError', 1)
    blamed = ["traceback: EOFError: Ran out of input"]
    assert runs.Ended(-signal.SIGKILL, told, 0).unseemly() == []
    assert runs.Ended(-signal.SIGKILL, ours, 0).unseemly() == blamed
    assert runs.Ended(0, told, 0).unseemly() == blamed


def test_temporary_files_but_for_pythons_own_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = "open('7ewz3qvz', 'w').write('blat'), open('7ewz3qvy', 'w').write('film'), os.mkdir('7ewz3qvx')"
    monkeypatch.setattr(runs, "_NARRATE", [sys.executable, "-c", f"import os; os.chdir(os.environ['TMPDIR']); {left}"])
    assert runs.narrate(tmp_path / "a", []).code == 0
    told = ["7ewz3qvx among temporary files", "7ewz3qvy among temporary files"]
    assert sorted(runs.temporary_left(tmp_path / "a")) == told


def test_shared_memory_that_nobody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs.SHARED / f"soak-test-{os.getpid()}"
    path.write_bytes(bytes(4096))
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
            assert path.name not in runs.shared_files()
        assert path.name in runs.shared_files()
        monkeypatch.setattr(runs, "_SETTLED", 0.1)
        assert path.name in runs.shared_since(set())
        assert path.name not in runs.shared_since({path.name})
    finally:
        path.unlink()


# --- the disk --------------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
told = []
for number in range(6):
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        told.append(os.write(file, b"0123456789"))
    except OSError as error:
        told.append(error.errno)
    os.close(file)
print(told)
"""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("w"), [10] * 6),
        (Fault("w", 3, "EIO"), [10, 10, 5, 10, 10, 10]),
        (Fault("w", 3, "ENOSPC", lasting=True), [10, 10, 28, 28, 28, 28]),
        (Fault("w", 2), [10, 5, 10, 10, 10, 10]),
        (Fault("sr", 1, "EIO"), [10] * 6),
    ],
)
def test_the_shim_breaks_the_calls_that_it_is_asked_to(
    tmp_path: Path, shim: Shim, fault: Fault, told: list[int]
) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        env = {**os.environ, **shim.environment(tmp_path / "here", tmp_path / "counts", fault)}
        done = subprocess.run(
            [sys.executable, "-c", WRITER, tmp_path / name / "x"], env=env, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == (told if name == "here" else [10] * 6)


@pytest.mark.slow
def test_faults_find_a_row_that_is_doubled(tmp_path: Path, shim: Shim) -> None:
    def meddle(folder: Path) -> None:
        spoil(folder / "out.jsonl", lambda rows: [*rows, rows[0]])

    tally = Tally("faults")
    Faults(Plan(tmp_path / "f", 1), tally, meddle, (JSONL,)).run()
    assert [line.rpartition(": ")[2] for line in tally.violations] == ["1 rows doubled"]


# --- kills and codecs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kills_find_an_output_that_is_cut_behind_its_back(tmp_path: Path) -> None:
    def meddle(folder: Path) -> None:
        spoil(folder / "out.jsonl", lambda rows: rows[:-2])
        (folder / ".out.jsonl.part").write_bytes(b"")

    tally = Tally("kills")
    Kills(Plan(tmp_path, 1), tally, meddle, (JSONL,)).run()
    told = [line.partition("locks: ")[2] for line in tally.violations]
    assert told == [".out.jsonl.part is left over", "out.jsonl: 2 rows lost"]
    assert tally.counts["kills"] == 1


@pytest.mark.slow
def test_formats_find_a_shard_that_is_no_longer_whole(tmp_path: Path) -> None:
    def meddle(folder: Path) -> None:
        shard = folder / "out" / "narrations-000000.tar"
        shard.write_bytes(shard.read_bytes()[:-512])

    tally = Tally("formats")
    words = "--part-mb", "1", "--media", "none"
    Formats(Plan(tmp_path, 2), tally, meddle, (Target("convert", "webdataset", "out/", words),)).run()
    assert tally.violations
    told = "formats --case 0: convert_webdataset_none, alone: out/narrations-000000.tar: 1 rows "
    assert all(line.startswith(told) for line in tally.violations)
    assert tally.counts["kills"] >= 1


@pytest.mark.slow
def test_codecs_find_a_sound_film_that_is_called_bad(tmp_path: Path) -> None:
    def meddle(folder: Path) -> None:
        spoil(folder / "out.jsonl.videos.jsonl", lambda rows: [row.replace(b'"done"', b'"failed"') for row in rows])

    tally = Tally("codecs")
    BadCodecs(Plan(tmp_path, 1), tally, meddle).run()
    told = [line.rpartition(": ")[2] for line in tally.violations]
    assert told == [f"sound-{letter} is failed" for letter in "abc"]


# --- damaged films ---------------------------------------------------------------------------------------------------


def test_a_case_damages_a_film_in_the_same_way_each_time() -> None:
    whole = bytes(range(256)) * 20
    harmed = [mutated(whole, chance("mutants", number)) for number in range(300)]
    assert harmed == [mutated(whole, chance("mutants", number)) for number in range(300)]
    assert sum(one != whole for one in harmed) > 280
    assert len(set(harmed)) > 280
    for number in range(300):
        mutated(b"x", chance("mutants", number))


def test_damaged_films_are_read_or_refused(tmp_path: Path) -> None:
    tally = Tally("mutants")
    Mutants(Plan(tmp_path, 40, first=100_000, jobs=2), tally, kinds=KINDS[::5], together=0).run()
    assert tally.violations == []
    assert tally.counts["films"] == 40
    assert 0 < tally.counts["refused"] < 40


def two_lines(children: Children, path: Path) -> int:
    raise VideoError(path, "is\nbad", "leave it")


def no_error_of_ours(children: Children, path: Path) -> int:
    raise KeyError("stts")


def sluggish(children: Children, path: Path) -> int:
    time.sleep(0.3)
    return 2


@pytest.mark.parametrize(
    ("read", "told"), [(two_lines, "more than a line"), (no_error_of_ours, "KeyError: 'stts'"), (sluggish, "took 0 s")]
)
def test_what_reading_a_damaged_film_may_not_do_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Children, Path], int],
    told: str,
) -> None:
    monkeypatch.setattr(mutants, "_SLOW", 0.2)
    tally = Tally("mutants")
    monkeypatch.setattr(Mutants, "_whole", lambda self, path: None)
    Mutants(Plan(tmp_path, 2), tally, read, KINDS[:1], together=0).run()
    assert [told in line for line in tally.violations] == [True, True]


def test_an_undamaged_film_without_clips_and_one_that_lasts_for_ever_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally("mutants")
    Mutants(Plan(tmp_path / "a", 0), tally, lambda children, path: 0, KINDS[:1], together=0).run()
    assert tally.violations == ["mutants --case 0: whole0.mp4, undamaged, gives 0 clips"]
    monkeypatch.setattr(mutants, "_LONG", 3.0)
    with Children() as children, pytest.raises(OverflowError, match="lasts from 0 to 4 s"):
        mutants.read_all(children, tmp_path / "a" / "whole0.mp4")


def test_a_child_that_takes_too_much_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "_START", -mutants._LIMITS.memory)
    tally = Tally("mutants")
    Mutants(Plan(tmp_path, 1), tally, kinds=KINDS[:1], together=0).run()
    assert any("a child has taken" in line for line in tally.violations)


@pytest.mark.slow
def test_a_run_over_damaged_films_that_does_a_thing_twice_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(folder: Path, words: Sequence[object]) -> runs.Ended:
        ended = runs.narrate(folder, words)
        spoil(folder / "out.jsonl", lambda rows: [*rows, str(time.monotonic()).encode()])
        return ended

    monkeypatch.setattr(mutants, "narrate", careless)
    tally = Tally("mutants")
    Mutants(Plan(tmp_path, 4), tally, kinds=KINDS[:1]).run()
    assert "mutants --case 0: a second run changes the output" in tally.violations


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_little_of_everything_finds_nothing(tmp_path: Path) -> None:
    from lavila_fast.bench.soak.__main__ import SCENARIOS

    words = ["--quick", "--first", "1000", "--output", str(tmp_path / "soak.json")]
    done = subprocess.run(
        [sys.executable, "-m", "lavila_fast.bench.soak", *words], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["violations"] == 0
    assert told["kills"] >= 3
    result = json.loads((tmp_path / "soak.json").read_text())
    assert set(result) == {"command", "machine", "scenarios"}
    assert list(result["scenarios"]) == list(SCENARIOS)


def test_a_violation_is_exit_code_1_and_names_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from lavila_fast.bench.soak.__main__ import main

    monkeypatch.setattr(Mutants, "_read", lambda self, path: "a fault")
    monkeypatch.setattr(Mutants.__init__, "__defaults__", (mutants.read_all, KINDS[:1], 0))
    done = CliRunner().invoke(main, ["--only", "mutants", "--mutants", "3", "--case", "17"])
    assert done.exit_code == 1
    assert "violation: mutants --case 17: 17-whole0.mp4: a fault" in done.output
    assert json.loads(done.output.splitlines()[-1]) == {"mutants": 1, "violations": 1}


def test_minutes_are_shared_out_by_weight_and_no_scenario_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from lavila_fast.bench.soak import __main__ as program

    left: dict[str, float] = {}

    class Cases:
        def __init__(self, plan: Plan, tally: Tally) -> None:
            self.plan, self.tally = plan, tally

        def run(self) -> None:
            left[self.tally.name] = self.plan.until - time.monotonic()
            self.tally.add(cases=int(self.tally.name != "codecs"))

    rows = {name: program.Row(Cases, row.weight) for name, row in program.SCENARIOS.items()}
    monkeypatch.setattr(program, "SCENARIOS", rows)
    found = program.soak(dict.fromkeys(rows, 1), minutes=1)
    whole = 0.0
    for name in reversed(rows):  # none takes any time here, so that each has its share of the whole minute
        whole += rows[name].weight
        assert left[name] == pytest.approx(60 * rows[name].weight / whole, rel=0.02)
    assert found["codecs"]["violations"] == ["codecs: no case began; give it more --minutes"]
    assert not any(one["violations"] for name, one in found.items() if name != "codecs")
