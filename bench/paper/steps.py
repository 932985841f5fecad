"""The steps of the whole run: what each one makes, what it needs, and the command that makes it.

All but the films, their annotation files and the rephraser's weights comes from `lavila-fast` commands, as a user would
type them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lavila_fast.bench.paper.material import FRAMES, SPLITS, STILL_FRAMES, Material
from lavila_fast.bench.paper.sizes import CONDITIONS, Course

BENCH = "lavila_fast.bench.paper"
FIRST = "image"  # the run of the first weights
EXAMS = ("ek100_mir", "ego_mcq")
_WITH_NARRATOR = ("narrator", "both")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of the step, and of its log.
        makes: What is there when it is done.
        words: Behind ``python -m``.
        after: Names of the steps whose results it reads.
        key: What else its result depends on; `words` if empty.
        clears: What is removed, beside what it makes, before it is done again in another way.
        seconds: That it takes of a quiet core, roughly; what is left is reckoned by these.
    """

    name: str
    makes: Path
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    seconds: float = 5.0
    key: str = ""
    clears: tuple[Path, ...] = ()

    @property
    def told(self) -> str:
        """A line that changes where its result would, for reasons of its own."""
        return self.key or " ".join(self.words)


@dataclass(frozen=True)
class Costs:
    """Seconds of a quiet core for one of each, measured once; they only foretell the end.

    Attributes:
        start: Of a command, until it begins to work.
        picture: A frame drawn and coded.
        trained: A clip that a dual encoder learns from; `captioned`: the narrator; `still`: a single picture.
        said: A sentence narrated.
        seen: A clip of a test.
        rephrased: A sentence; `taught`: an update of the rephraser's training.
    """

    start: float = 4.0
    picture: float = 0.0035
    trained: float = 0.018
    captioned: float = 0.02
    still: float = 0.008
    said: float = 0.03
    seen: float = 0.01
    rephrased: float = 0.02
    taught: float = 0.03


COSTS = Costs()


def steps_of(material: Material) -> list[Step]:
    """All steps, each behind those that it needs."""
    return [*_films(material), *(step for seed in material.size.seeds for step in _of_seed(material, seed))]


def _films(material: Material) -> Iterator[Step]:
    size, own = material.size, partial(_own, material)
    for video in range(size.videos):
        film = material.chunk(f"v{video}")
        yield own(f"film_{video}", film, f"{size.clips} clips", size.clips * FRAMES * COSTS.picture)
    yield own("stills", material.data / "stills.pkl", f"{size.stills}", size.stills * STILL_FRAMES * COSTS.picture)
    tested = f"{size.test_films} films of {size.test_clips} clips, a thing each"
    for split in dict.fromkeys(SPLITS[name] for name in size.tests):
        last = material.test_film(split, size.test_films - 1)
        step = own(f"films_{split}", last, tested, size.test_films * size.test_clips * FRAMES * COSTS.picture)
        yield replace(step, clears=(material.test_films(split),))
    for name in size.tests:
        yield own(f"test_{name}", material.test(name) / "ego4d_val.pkl", tested)
    rephraser = material.work / "rephraser"
    yield own("rephraser", rephraser, f"{size.rephraser} updates", size.rephraser * COSTS.taught)
    for seed in size.seeds:
        key = f"{size.share:g} of {size.videos} films of {size.clips} clips"
        yield own(f"annotate_{seed}", material.data / f"full_{seed}.pkl", key)
    settings = {**asdict(size.image), "data.human": "stills.pkl"}
    settings["save_epochs"] = _epochs(material, size.stills, size.image)
    yield _train(material, "paper_image", FIRST, settings, ("stills",), size.image.clips * COSTS.still)
    for name in size.tests:
        yield from _exams(material, FIRST, name)


def _of_seed(material: Material, seed: int) -> Iterator[Step]:
    films = (*(f"film_{video}" for video in range(material.size.videos)), f"annotate_{seed}")
    yield _rephrase(material, seed)
    for condition in CONDITIONS:
        if condition == "narrator":
            yield from _narrated(material, seed, films)
        more = {"rephraser": ("rephrase",), "narrator": ("narrations",), "both": ("rephrase", "narrations")}
        after = (*films, FIRST, *(f"{step}_{seed}" for step in more.get(condition, ())))
        yield _dual(material, seed, condition, after)
        for test in material.size.tests:
            yield from _exams(material, f"{condition}_{seed}", test)


def _dual(material: Material, seed: int, condition: str, after: tuple[str, ...]) -> Step:
    size, human = material.size, {"rephraser": "rephrased", "both": "rephrased", "full": "full"}
    clips = size.actions if condition == "full" else round(size.actions * size.share)
    settings: dict[str, Any] = {**asdict(size.dual), "seed": seed, "starts": f"dual_encoder:{material.work / FIRST}"}
    settings["data.human"] = f"{human.get(condition, 'human')}_{seed}.pkl"
    recipe = "paper_dual"
    if condition in _WITH_NARRATOR:
        recipe, settings["data.others"], clips = "paper_dual_all", [f"narrated_{seed}.pkl"], size.actions
        settings["task.pseudo_temperature"] = size.pseudo_temperature
    settings["save_epochs"] = _epochs(material, clips, size.dual)
    cost = size.dual.clips * COSTS.trained
    return _train(material, recipe, f"{condition}_{seed}", settings, after, cost)


def _narrated(material: Material, seed: int, films: tuple[str, ...]) -> Iterator[Step]:
    """A narrator that learns from the human narrations, says what it sees of the rest, and is believed where sure."""
    size, work = material.size, material.work
    run, journal = work / f"teller_{seed}", journal_of(material, seed)
    settings: dict[str, Any] = {**asdict(size.narrator), "seed": seed, "data.human": f"human_{seed}.pkl"}
    settings["starts"] = f"dual_encoder:{work / f'human_{seed}'}"
    settings["save_epochs"] = _epochs(material, round(size.actions * size.share), size.narrator)
    cost = size.narrator.clips * COSTS.captioned
    yield _train(material, "paper_narrator", run.name, settings, (*films, f"human_{seed}"), cost)
    rest, said = material.data / f"rest_{seed}.pkl", round(size.actions * (1 - size.share)) * size.samples
    clips = {"clips": rest, "samples": size.samples, "seed": seed}
    words = _ours("narrate", material.chunks, "-q", "-o", journal, model=model_of(run), threads=1, workers=1, **clips)
    cost = COSTS.start + said * COSTS.said
    yield Step(f"narrate_{seed}", journal, words, (run.name,), cost, clears=(journal.parent,))
    output = material.data / f"narrated_{seed}.pkl"
    words = _ours("narrations", journal, "-o", output, surest=f"{size.surest:g}")
    yield Step(f"narrations_{seed}", output, words, (f"narrate_{seed}",))


def journal_of(material: Material, seed: int) -> Path:
    """Where `lavila-fast narrate` writes; its notes lie beside it."""
    return material.work / f"narrated_{seed}" / "narrations.jsonl"


def _rephrase(material: Material, seed: int) -> Step:
    source, output = (material.data / f"{name}_{seed}.pkl" for name in ("human", "rephrased"))
    cache, model = material.work / f"rephrase_{seed}.sqlite", material.work / "rephraser"
    words = _ours("rephrase", source, "-q", "-o", output, model=model, cache=cache, max_tokens=32, device="cpu")
    cost = COSTS.start + material.size.actions * material.size.share * COSTS.rephrased
    return Step(f"rephrase_{seed}", output, words, ("rephraser", f"annotate_{seed}"), cost)


def _exams(material: Material, run: str, test: str) -> Iterator[Step]:
    """What the dual encoder of a run is worth."""
    size, videos = material.size, material.test_videos(test)
    for exam in EXAMS:
        output = result_file(material, run, test, exam)
        places = {"data": material.test(test), "features": output.with_suffix(".features")}
        places["videos"] = videos if exam == "ego_mcq" else videos.parent
        unit = ("--normalised",) if exam == "ego_mcq" else ()
        model = model_of(material.work / run)
        words = _ours("eval", exam, "-q", "--no-page", *unit, "-o", output, model=model, threads=1, workers=0, **places)
        cost = COSTS.start + size.test_films * size.test_clips * COSTS.seen
        after = (run, f"test_{test}", f"films_{SPLITS[test]}")
        yield Step(output.stem, output, words, after, cost, clears=(places["features"],))


def result_file(material: Material, run: str, test: str, exam: str) -> Path:
    """Where `lavila-fast eval` writes what the dual encoder of a run is worth."""
    return material.work / "results" / f"{run}_{test}_{exam}.json"


def model_of(run: Path) -> Path:
    """What a run ends with."""
    return run / "model.safetensors"


def _train(
    material: Material, recipe: str, run: str, settings: Mapping[str, Any], after: tuple[str, ...], seconds: float
) -> Step:
    told = [word for name, value in settings.items() for word in ("--set", f"{name}={_json(value)}")]
    folder = material.work / run
    words = _ours("train", recipe, "--resume", *told, "-o", folder, data=material.data, workers=0, every=50)
    return Step(run, model_of(folder), words, after, COSTS.start + seconds, clears=(folder,))


def _epochs(material: Material, clips: int, course: Course) -> float:
    """From one checkpoint to the next, in epochs of so many clips."""
    return round(material.size.save / max(1, clips // course.batch_size), 6)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _ours(*words: Any, **options: Any) -> tuple[str, ...]:
    """A command of `lavila-fast`; `options` that take a value."""
    named = (word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value)))
    return ("lavila_fast", *map(str, words), *named)


def _own(material: Material, name: str, makes: Path, key: str, seconds: float = 2.0) -> Step:
    """A step that this package does itself."""
    words = (BENCH, "--work", str(material.work), "--step", name)
    return Step(name, makes, words, (), COSTS.start + seconds, f"{name}: {key}")


def do(material: Material, name: str) -> None:
    """One of the steps that no command of `lavila-fast` does."""
    from lavila_fast.bench.paper.rephraser import train_rephraser

    what, _, which = name.partition("_")
    if what == "film":
        material.shoot(int(which))
    elif what == "stills":
        material.shoot_stills()
    elif what == "films":
        material.shoot_test(next(split for split in SPLITS.values() if split == which))
    elif what == "test":
        material.annotate_test(which)
    elif what == "annotate":
        material.annotate(int(which))
    else:
        train_rephraser(material.work / "rephraser", material.size.rephraser)
