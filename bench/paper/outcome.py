"""What came out: scores of every dual encoder, their mean and deviation over seeds, and how good the sentences were."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from lavila_fast.archive.finished.narrations import Counts, read_clips, video_id
from lavila_fast.bench.paper.material import SECONDS, Material
from lavila_fast.bench.paper.sizes import CONDITIONS, ROWS, TESTS
from lavila_fast.bench.paper.steps import FIRST, journal_of, result_file
from lavila_fast.bench.paper.wordings import phrases
from lavila_fast.kitchen.world import Action, parse_sentence
from lavila_fast.train.datasets.ego4d import read_narrations

FIGURES = {"map": "mAP", "ndcg": "nDCG", "choice": "1 of 5, same film"}


def outcome(material: Material) -> dict[str, Any]:
    """All figures of a run that is done, JSON-ready; scores in per cent."""
    seeds = material.size.seeds
    runs = {"first": [FIRST]} | {name: [f"{name}_{seed}" for seed in seeds] for name in CONDITIONS}
    scores = {
        test: {name: spread([_scores(material, run, test) for run in some]) for name, some in runs.items()}
        for test in material.size.tests
    }
    return {
        "seeds": list(seeds),
        "actions": material.size.actions,
        "narrated": round(material.size.actions * material.size.share),
        "test_clips": material.size.test_films * material.size.test_clips,
        "scores": scores,
        "sentences": {
            "narrator": spread([narrator_right(material, seed) for seed in seeds]),
            "rephraser": spread([rephraser_right(material, seed) for seed in seeds]),
        },
    }


def _scores(material: Material, run: str, test: str) -> dict[str, float]:
    mir, mcq = (
        json.loads(result_file(material, run, test, exam).read_text())["scores"] for exam in ("ek100_mir", "ego_mcq")
    )
    return {"map": mir["map"], "ndcg": mir["ndcg"], "choice": mcq["intra"]}


def spread(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Each figure's mean and standard deviation over seeds (of a sample; 0 for one alone), and its values."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": statistics.mean(values), "sd": deviation, "values": values}
    return found


def narrator_right(material: Material, seed: int) -> dict[str, float]:
    """Of what the narrator said, and of what was kept of it: per cent that is right; and per cent that is kept."""
    truth = {
        (f"v{video}", number): one.action
        for video in range(material.size.videos)
        for number, one in enumerate(material.scenes(video))
    }

    def of(video: str, start: float) -> Action:
        return truth[video, round(start / SECONDS)]

    clips = list(read_clips(journal_of(material, seed), Counts()))
    kept = read_narrations(material.data / f"narrated_{seed}.pkl")
    said = [(of(video_id(row.video).id, row.start), row.text) for clip in clips for row in clip]
    left = [(of(row.video, row.start), text) for row in kept for text in row.texts]
    return {
        **{f"said_{name}": value for name, value in right(said).items()},
        **{f"kept_{name}": value for name, value in right(left).items()},
        "kept_sentences": 100 * len(left) / len(said),
        "kept_clips": 100 * len(kept) / len(clips),
    }


def right(pairs: Iterable[tuple[Action, str]]) -> dict[str, float]:
    """Per cent of sentences that say the right verb, the right verb and object, and all four parts."""
    told = [(action, parse_sentence(text)) for action, text in pairs]
    count = max(1, len(told))
    verbs = sum(said is not None and said.verb == action.verb for action, said in told)
    both = sum(said is not None and (said.verb, said.obj) == (action.verb, action.obj) for action, said in told)
    return {
        "verb": 100 * verbs / count,
        "verb_object": 100 * both / count,
        "sentence": 100 * sum(said == action for action, said in told) / count,
    }


def rephraser_right(material: Material, seed: int) -> dict[str, float]:
    """Paraphrases a sentence, and per cent of them that say the same."""
    rows = read_narrations(material.data / f"rephrased_{seed}.pkl")
    more = [(row.texts[0], text) for row in rows for text in row.texts[1:]]
    same = sum(same_meaning(parse_sentence(own), text) for own, text in more)
    return {"a_sentence": len(more) / max(1, len(rows)), "right": 100 * same / max(1, len(more))}


def same_meaning(action: Action | None, text: str) -> bool:
    """Whether a paraphrase names the hand, the colour, the object, and the verb by one of its phrases."""
    if action is None:
        return False
    parts = (f"the {action.colour} {action.obj}", f"the {action.hand} hand")
    return all(part in text for part in parts) and any(f" C {verb} the" in text for verb in phrases(action.verb))


def paper_table(result: dict[str, Any]) -> str:
    """The README's table, from ``paper.json``."""
    tests = [name for name in TESTS if name in result["scores"]]
    rows = ["| | " + " | ".join(f"{TESTS[test]}: {say}" for test in tests for say in FIGURES.values()) + " |"]
    rows.append("|---|" + "---:|" * len(tests) * len(FIGURES))
    for condition, what in ROWS.items():
        cells = [_cell(result["scores"][test][condition][name]) for test in tests for name in FIGURES]
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", _note(result)])


def _cell(row: dict[str, Any]) -> str:
    return f"{row['mean']:.1f}" + (f" ± {row['sd']:.1f}" if len(row["values"]) > 1 else "")


def _note(result: dict[str, Any]) -> str:
    said, again = result["sentences"]["narrator"], result["sentences"]["rephraser"]
    return (
        f"Per cent, mean ± standard deviation over {len(result['seeds'])} seeds. {result['narrated']:,} of "
        f"{result['actions']:,} actions narrated by the human, in one wording; {result['test_clips']} clips a test. Of "
        f"the narrator's sentences {said['said_verb']['mean']:.0f} % have the right verb; of those that were kept, "
        f"{said['kept_sentences']['mean']:.0f} %, {said['kept_verb']['mean']:.0f} %. Of the paraphrases "
        f"{again['right']['mean']:.0f} % say the same. {result['machine']['cpu']}; commands took "
        f"{result['minutes']:.0f} minutes, {result['jobs']} at a time."
    )
