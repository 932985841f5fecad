"""The paper's claim in small: what is chosen, how steps are run and gone on with, and how figures become a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila_fast.bench.paper import outcome
from lavila_fast.bench.paper.going import Progress, StepError, done_before, go, mark_of
from lavila_fast.bench.paper.material import FRAMES, Material, narrated
from lavila_fast.bench.paper.sizes import CONDITIONS, FULL, ROWS, SIZES, TESTS, TOY, TRIAL, Size, with_values
from lavila_fast.bench.paper.steps import BENCH, Step, steps_of
from lavila_fast.bench.paper.wordings import (
    COLOURS,
    THINGS,
    actions,
    draws,
    otherwise,
    paraphrases,
    phrases,
    plain,
    scene,
    still,
)
from lavila_fast.errors import InputError
from lavila_fast.kitchen.world import HELD_OUT_PAIRS, VERBS, Action, parse_sentence
from lavila_fast.rephrase.choose import fault
from lavila_fast.rephrase.marks import Marked
from lavila_fast.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CUP = Action("pick_up", "cup", "red", "left")


def test_one_human_narrates_a_part_of_the_actions_other_ones_for_each_seed() -> None:
    first = narrated(2400, 0.25, 1)
    assert len(first) == 600
    assert first == narrated(2400, 0.25, 1)
    assert len(first & narrated(2400, 0.25, 2)) < 300
    assert {number // 600 for number in first} == {0, 1, 2, 3}  # sparse in every film
    assert max(np.bincount([number // 100 for number in first])) < 50


def test_annotations_are_apart_and_nothing_is_learnt_that_is_tested(tmp_path: Path) -> None:
    from lavila_fast.train.datasets.ego4d import read_narrations

    material = Material(tmp_path, TOY)
    material.annotate(1)
    human, rest, full = (read_narrations(material.data / f"{name}_1.pkl") for name in ("human", "rest", "full"))
    assert (len(human), len(rest), len(full)) == (8, 56, 64)
    assert {row[:3] for row in human} | {row[:3] for row in rest} == {row[:3] for row in full}
    assert all(row.texts == ("",) for row in rest)
    scenes = [one for video in range(TOY.videos) for one in material.scenes(video)]
    assert [row.texts[0] for row in full] == [one.action.sentence for one in scenes]
    assert not {(one.action.verb, one.action.obj) for one in scenes} & HELD_OUT_PAIRS
    assert {(one.action.verb, one.action.obj) for one in material.test_scenes("unseen_pairs", 0)} <= HELD_OUT_PAIRS
    assert all((row.end - row.start) * 30 == pytest.approx(FRAMES - 1) for row in full)


def test_this_part_of_the_kitchen_has_its_own_unseen_pairs() -> None:
    seen, held = ({(one.verb, one.obj) for one in actions(split)} for split in ("train", "unseen_pairs"))
    assert len(seen | held) == len(VERBS) * len(THINGS)
    assert held == {pair for pair in HELD_OUT_PAIRS if pair[1] in THINGS}
    assert len(held) >= len(THINGS)
    drawn = [scene(number).action for number in range(400)]
    assert {one.verb for one in drawn} == set(VERBS)
    assert [scene(number).action for number in range(5)] == drawn[:5]
    assert [scene(number, "unseen_seeds").action for number in range(5)] != drawn[:5]


def test_first_weights_know_no_verbs() -> None:
    said = {still(action) for action in actions("train")}
    assert len(said) == len(THINGS) * len(COLOURS) * 2
    assert not any(phrase in text for text in said for verb in VERBS for phrase in phrases(verb))


def test_other_words_mean_the_same_and_only_that() -> None:
    every = [phrase for verb in VERBS for phrase in phrases(verb)]
    assert len(every) == len(set(every)) == 3 * len(VERBS)
    draw = draws(1, 2)
    texts = {otherwise(CUP, draw) for _ in range(20)}
    assert texts == {f"#C C {verb} the red cup with the left hand" for verb in ("lifts", "raises")}
    assert all(outcome.same_meaning(CUP, text) for text in texts)
    assert not outcome.same_meaning(CUP, "#C C drops the red cup with the left hand")
    assert not outcome.same_meaning(CUP, "#C C lifts the red bowl with the left hand")
    assert not outcome.same_meaning(None, CUP.sentence)


def test_paraphrases_pass_the_rephraser_and_fit_the_text_tower() -> None:
    words = load_tokenizer(ROOT / "train" / "text_tokenizer.json", "clip", 32)
    for verb in VERBS:
        for obj in THINGS:
            action = Action(verb, obj, "white", "right")
            source = Marked.parse(action.sentence)
            assert source.natural() == plain(action)
            said = [source.restore(text) for text in paraphrases(action)]
            assert [fault(source, Marked.parse(text).said) for text in said] == [""] * 4, said
            assert all(outcome.same_meaning(action, text) for text in said)
            assert all(len(row) <= 32 for row in words.rows(said)), said


def test_sizes_go_through_json_and_values_are_set_by_name() -> None:
    for size in SIZES.values():
        assert Size.from_dict(json.loads(json.dumps(size, default=vars))) == size
    other = with_values(TRIAL, ["surest=0.3", "dual.steps=700", "seeds=[91]", 'tests=["pairs"]'])
    assert (other.surest, other.dual.steps, other.seeds, other.tests) == (0.3, 700, (91,), ("pairs",))
    assert not set(TRIAL.seeds) & set(FULL.seeds)  # the table's are not chosen by
    for wrong in ("surest", "surest=x", "sure=1", "dual.step=1", "surest=[1]"):
        with pytest.raises(InputError, match=f"--set {wrong}".replace("[", r"\[")):
            with_values(TRIAL, [wrong])


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: size.name)
def test_every_step_stands_behind_those_that_it_needs(size: Size, tmp_path: Path) -> None:
    steps = steps_of(Material(tmp_path, size))
    names = [step.name for step in steps]
    assert len(names) == len(set(names))
    for number, step in enumerate(steps):
        assert set(step.after) <= set(names[:number]), step.name
        assert step.words[0] in ("lavila_fast", BENCH)
    ours = {step.words[1] for step in steps if step.words[0] == "lavila_fast"}
    assert ours == {"train", "rephrase", "narrate", "narrations", "eval"}
    exams = [step for step in steps if step.words[1] == "eval"]
    assert len(exams) == 2 * len(size.tests) * (1 + len(CONDITIONS) * len(size.seeds))


def test_commands_are_understood_as_they_are_given(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from lavila_fast.cli.main import cli
    from lavila_fast.train.recipe import with_settings
    from lavila_fast.train.zoo import find_recipe

    for step in steps_of(Material(tmp_path, FULL)):
        module, name, *words = step.words
        if module != "lavila_fast":
            continue
        command: Any = cli.get_command(None, name)  # type: ignore[arg-type]
        if name == "eval":
            command = command.commands["run"]
        given = command.make_context(name, words).params
        if name == "train":
            row = with_settings(find_recipe(given["recipe"]), given["settings"])
            assert (row.steps, row.batch_size) in (
                (FULL.image.steps, 128),
                (FULL.dual.steps, 128),
                (FULL.narrator.steps, 128),
            )
            assert row.data.options["human"].endswith(".pkl")
            assert row.task.options.get("pseudo_temperature") == (0.07 if row.name == "paper_dual_all" else None)


WRITES = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "writes.py").write_text(WRITES)
    (tmp_path / "fails.py").write_text("import sys; sys.exit('no flour')")
    (tmp_path / "nothing.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def step_of(work: Path, name: str, *after: str, program: str = "writes", key: str = "") -> Step:
    return Step(name, work / name, (program, str(work / name)), after, 1.0, key)


def test_what_is_done_stays_done_and_what_has_changed_is_done_again(programs: Path) -> None:
    work, lines = programs / "work", list[str]()
    steps = [step_of(work, "a"), step_of(work, "b", "a"), step_of(work, "c")]
    go(work, steps, 2, lines.append)
    assert [(work / name).read_text() for name in "abc"] == ["x", "x", "x"]
    assert lines[-1].startswith("[3/3]")
    assert lines[-1].endswith("about 0 s left")
    go(work, steps, 2, lines.append)
    assert len(lines) == 3
    mark_of(work, steps[2]).unlink()  # killed after its last word: it is given again, and goes on
    go(work, steps, 1, lines.append)
    assert [(work / name).read_text() for name in "abc"] == ["x", "x", "xx"]
    changed = [step_of(work, "a", key="other"), *steps[1:]]
    assert [step.name for step in done_before(work, changed)] == ["c"]
    go(work, changed, 1, lines.append)  # what stood on it is forgotten, too
    assert [(work / name).read_text() for name in "abc"] == ["x", "x", "xx"]
    assert len(lines) == 6


@pytest.mark.parametrize(("program", "told"), [("fails", "b ended with 1: no flour; all"), ("nothing", "is not there")])
def test_a_step_that_fails_says_why_and_the_rest_can_go_on(programs: Path, program: str, told: str) -> None:
    work = programs / "work"
    steps = [step_of(work, "a"), step_of(work, "b", "a", program=program), step_of(work, "c", "b")]
    with pytest.raises(StepError, match=told):
        go(work, steps, 2, lambda line: None)
    assert [step.name for step in done_before(work, steps)] == ["a"]
    go(work, [steps[0], step_of(work, "b", "a"), steps[2]], 2, lambda line: None)
    assert (work / "c").read_text() == "x"


@pytest.mark.skipif(sys.platform != "linux", reason="children are bound to their parent's life on Linux")
def test_nothing_outlives_a_run_that_is_killed(programs: Path) -> None:
    (programs / "waits.py").write_text(
        "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()} '); time.sleep(60)"
    )
    work = programs / "work"
    work.mkdir()
    code = (
        "from pathlib import Path; from lavila_fast.bench.paper.going import go; from lavila_fast.bench.paper.steps "
        f"import Step; w = Path({str(work)!r}); go(w, [Step('a', w / 'a', ('waits', str(w / 'a')))], 1, print)"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: (work / "a").is_file() and (work / "a").read_text().endswith(" "))
    child = int((work / "a").read_text())
    run.kill()
    run.wait()
    until(lambda: not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text())
    assert not mark_of(work, step_of(work, "a")).exists()


def until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_is_left_follows_from_how_long_steps_took(tmp_path: Path) -> None:
    steps = [Step(name, tmp_path, (), (), seconds) for name, seconds in (("a", 10), ("b", 20), ("c", 60), ("d", 40))]
    lines: list[str] = []
    progress = Progress(steps, 2, lines.append)
    assert progress.left() == 65
    progress.known(["d"])  # an earlier run's: of what it took nothing is known
    assert progress.left() == 45
    progress.ended(steps[0], 30)
    assert progress.left() == 80 / 2 * 3
    assert lines == ["[2/4] a: 30 s; about 2 min left"]


def test_means_and_deviations() -> None:
    found = outcome.spread([{"map": 10.0}, {"map": 20.0}, {"map": 60.0}])
    assert found["map"]["mean"] == pytest.approx(30)
    assert found["map"]["sd"] == pytest.approx(np.std([10, 20, 60], ddof=1))
    assert outcome.spread([{"map": 10.0}])["map"]["sd"] == 0


def test_sentences_are_held_against_what_happened() -> None:
    other = Action("put_down", "cup", "red", "left")
    pairs = [
        (CUP, CUP.sentence),
        (CUP, other.sentence),
        (other, "#C C puts down the red bowl with the left hand"),
        (CUP, ""),
    ]
    assert outcome.right(pairs) == {"verb": 50.0, "verb_object": 25.0, "sentence": 25.0}
    assert parse_sentence(CUP.sentence) == CUP


def test_the_table_says_mean_and_deviation_of_every_condition() -> None:
    row = {"mean": 31.25, "sd": 1.26, "values": [30.0, 32.5]}
    scores = {test: {name: dict.fromkeys(("map", "ndcg", "choice"), row) for name in ROWS} for test in TESTS}
    names = ("said_verb", "kept_sentences", "kept_verb", "right")
    result = {
        "scores": scores,
        "seeds": [1, 2],
        "narrated": 600,
        "actions": 2400,
        "test_clips": 500,
        "minutes": 85.2,
        "jobs": 2,
        "machine": {"cpu": "2 × Abacus"},
        "sentences": dict.fromkeys(("narrator", "rephraser"), dict.fromkeys(names, row)),
    }
    alone = {"mean": 9.94, "sd": 0.0, "values": [9.94]}
    for test in TESTS:
        scores[test]["first"] = {"map": alone, "ndcg": alone, "choice": alone}
    table = outcome.paper_table(result)
    lines = table.splitlines()
    assert len(lines) == 2 + len(ROWS) + 2
    assert all(line.count("|") == lines[0].count("|") == 2 + 3 * len(TESTS) for line in lines[:8])
    assert lines[3] == "| human narrations only" + " | 31.2 ± 1.3" * 9 + " |"
    assert lines[2].endswith("no verbs" + " | 9.9" * 9 + " |")
    assert "over 2 seeds. 600 of 2,400 actions" in table
    assert "2 × Abacus; commands took 85 minutes, 2 at a time." in table


@pytest.mark.slow
def test_all_steps_at_toy_size_gone_on_with_after_a_kill(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        BENCH,
        "--toy",
        "--work",
        str(tmp_path / "w"),
        "--output",
        str(tmp_path / "o.json"),
    ]
    run = subprocess.Popen(command)
    until_slow(lambda: (tmp_path / "w" / "done" / "image").exists() or run.poll() is not None)
    run.kill()
    run.wait()
    subprocess.run(command, check=True)
    told = json.loads((tmp_path / "o.json").read_text())
    assert set(told["scores"]) == {"others"}
    assert set(told["scores"]["others"]) == set(ROWS)
    assert 0 < told["scores"]["others"]["both"]["map"]["mean"] < 100
    assert "| + both |" in outcome.paper_table(told)
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "min left" not in again.stderr  # nothing was done again


def until_slow(true: Any) -> None:
    while not true():
        time.sleep(0.2)
