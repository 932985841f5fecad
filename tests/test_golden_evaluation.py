"""Scores and figures of the original's evaluation, recorded on fixed embeddings and logits."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila_fast.engines.sampling import Warp
from lavila_fast.evaluate import metrics
from lavila_fast.evaluate.cider import cider
from lavila_fast.exams import narrators, scores
from lavila_fast.exams.data_folder import DataFolder
from lavila_fast.exams.ego4d_annotations import open_ego_mcq
from lavila_fast.exams.meteor import meteor, meteor_counts
from lavila_fast.exams.meteor_tables import find_tables
from lavila_fast.exams.protocols import PROTOCOLS
from lavila_fast.exams.scores import class_cosines, class_texts, class_vectors, join_views
from lavila_fast.exams.sentence_exams import Choice
from lavila_fast.exams.sentences import bleu, bleu_counts, by_blanks, kept_ids, rouge_l, spelt

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_TRAIN_DIR") or Path(__file__).parent / "data" / "golden-train")
_FILE = GOLDEN / "evaluation.json"
TOLD: dict[str, Any] = json.loads(_FILE.read_text()) if _FILE.is_file() else {}

pytestmark = pytest.mark.skipif(not TOLD, reason=f"no recordings in {GOLDEN}")
RTOL = 1e-6
CLASSES = [name for name, told in TOLD.items() if "texts_per_class" in told]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "evaluation.npz") as file:
        return dict(file)


def values(name: str, call: str) -> list[Any]:
    return [found for what, found in TOLD[name]["values"] if what == call]


def class_scores(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    told, tuned = TOLD[name], name.startswith("finetuned")
    rows = told.get("text_rows") or {text: i for i, (text,) in enumerate(told["texts_per_class"])}
    vectors = class_vectors(
        arrays[f"{name}.text_embeddings"], [[rows[t] for t in some] for some in told["texts_per_class"]]
    )
    seen = class_cosines(arrays[f"{name}.image_embeddings"], vectors)
    return join_views(seen, "mean" if tuned else "max", "always" if tuned else "several")


@pytest.mark.parametrize("name", CLASSES)
def test_scores_of_classes_described_by_texts(name: str, arrays: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(class_scores(name, arrays), arrays[f"{name}.scores"], rtol=1e-5, atol=2e-7)


def test_texts_of_a_class() -> None:
    plain = TOLD["zeroshot_ek100_cls"]["texts_per_class"]
    told = TOLD["zeroshot_ek100_cls.template"]["texts_per_class"]
    assert class_texts(plain, "plain") == plain
    assert class_texts(plain, "ego4d") == told


@pytest.mark.parametrize("name", [name for name in CLASSES if "cls" in name])
def test_first_and_first_five(name: str, arrays: dict[str, np.ndarray]) -> None:
    labels, told = arrays[f"{name}.labels"], values(name, "accuracy")[0]
    found = [100 * metrics.topk_hits(class_scores(name, arrays), labels, k).mean() for k in (1, 5)]
    np.testing.assert_allclose(found, np.ravel(told), rtol=RTOL)


@pytest.mark.parametrize("name", [name for name in TOLD if "charades" in name])
def test_charades(name: str, arrays: dict[str, np.ndarray]) -> None:
    found = scores.average_precisions(class_scores(name, arrays), arrays[f"{name}.labels"])
    if "returned" in TOLD[name]:
        assert found.mean() == pytest.approx(TOLD[name]["returned"]["mAP"], rel=RTOL)
        return
    mean, _, each = values(name, "charades_map")[0]
    np.testing.assert_allclose(found, np.array(each, float), rtol=RTOL)
    np.testing.assert_allclose(found.mean(), np.array(mean, float), rtol=RTOL)


@pytest.mark.parametrize("name", [name for name in CLASSES if "egtea" in name])
def test_egtea(name: str, arrays: dict[str, np.ndarray]) -> None:
    labels, told = arrays[f"{name}.labels"], class_scores(name, arrays).argmax(axis=1)
    found = [100 * scores.mean_accuracy(labels, told), 100 * (labels == told).mean()]
    np.testing.assert_allclose(found, values(name, "get_mean_accuracy")[0], rtol=RTOL)


@pytest.mark.parametrize("name", [name for name in TOLD if name.startswith("finetuned_egtea")])
def test_egtea_of_a_classifier(name: str, arrays: dict[str, np.ndarray]) -> None:
    labels = arrays[f"{name}.labels"]
    joined = join_views(arrays[f"{name}.logits"], "mean", "always")
    told = joined.argmax(axis=1)
    found = [100 * scores.mean_accuracy(labels, told), 100 * (labels == told).mean()]
    np.testing.assert_allclose(found, values(name, "get_mean_accuracy")[0], rtol=RTOL)
    tops = [100 * metrics.topk_hits(joined, labels, k).mean() for k in (1, 5)]
    np.testing.assert_allclose(tops, [TOLD[name]["returned"][key] for key in ("acc1", "acc5")], rtol=RTOL)


def test_actions_by_one_head(arrays: dict[str, np.ndarray]) -> None:
    name, pairs = "finetuned_ek100_cls.one_head", np.array(TOLD["ek100_action_to_verb_noun"])
    labels = arrays[f"{name}.labels"]
    actions = join_views(arrays[f"{name}.logits"], "mean", "always")
    found = [(labels, actions.argmax(axis=1))]
    for part in range(2):
        every = scores.marginals(actions, pairs[:, part].tolist(), 1 + int(pairs[:, part].max()))
        found.append((pairs[labels, part], every.argmax(axis=1)))
    both = [[100 * scores.mean_accuracy(*one), 100 * (one[0] == one[1]).mean()] for one in found]
    np.testing.assert_allclose(both, values(name, "get_mean_accuracy"), rtol=RTOL)


def test_actions_by_three_heads(arrays: dict[str, np.ndarray]) -> None:
    name, pairs = "finetuned_ek100_cls.three_heads", np.array(TOLD["ek100_action_to_verb_noun"])
    actions, told = arrays[f"{name}.labels"], TOLD[name]["returned"]
    for head, labels, key in (
        (0, pairs[actions, 0], "acc1_verb"),
        (1, pairs[actions, 1], "acc1_noun"),
        (2, actions, "acc1"),
    ):
        joined = join_views(arrays[f"{name}.logits_{head}"], "mean", "always")
        assert 100 * metrics.topk_hits(joined, labels).mean() == pytest.approx(told[key], rel=RTOL)
    assert 100 * metrics.topk_hits(joined, actions, 5).mean() == pytest.approx(told["acc5"], rel=RTOL)


@pytest.mark.parametrize("name", [name for name in TOLD if "ek100_mir" in name])
def test_retrieval(name: str, arrays: dict[str, np.ndarray]) -> None:
    from test_golden_datasets import EK100

    from lavila_fast.video.pickled import read_matrix

    folder, of = EK100 / "retrieval_annotations", "zeroshot_ek100_mir"
    relevancy = read_matrix(folder / "relevancy" / "caption_relevancy_EPIC_100_retrieval_test.pkl")
    video, text = arrays[f"{of}.video_embeddings"], arrays[f"{of}.text_embeddings"]
    found = scores.retrieval_scores(video, text, normalised=not name.endswith("False"))
    if name == of:
        np.testing.assert_allclose(2 * found - 1, arrays[f"{of}.similarity"], atol=1e-6)
    places = columns(folder)
    for call, figure in (("calculate_mAP", metrics.average_precision), ("calculate_nDCG", metrics.ndcg)):
        both = metrics.both_ways(figure, found[:, places], relevancy)
        np.testing.assert_allclose(both[:2], values(name, call), rtol=RTOL)


def columns(folder: Path) -> list[int]:
    from lavila_fast.exams.annotations import sentence_rows
    from lavila_fast.train.datasets.ek100 import read_segments, read_sentences

    segments = read_segments(folder / "EPIC_100_retrieval_test.csv")
    return sentence_rows(segments, read_sentences(folder / "EPIC_100_retrieval_test_sentence.csv"), Path("x"))


def test_retrieval_figures(arrays: dict[str, np.ndarray]) -> None:
    told = TOLD["mir_metrics"]
    for key, figure in (("mAP", metrics.average_precision), ("nDCG", metrics.ndcg)):
        found = metrics.both_ways(figure, arrays["mir_metrics.similarity"], arrays["mir_metrics.relevancy"])
        np.testing.assert_allclose(found, told[key], rtol=RTOL)


@pytest.mark.parametrize("name", [name for name in TOLD if "egomcq" in name])
def test_choice_of_five(name: str, arrays: dict[str, np.ndarray]) -> None:
    found = scores.choice_scores(arrays[f"{name}.query_embeddings"], arrays[f"{name}.option_embeddings"])
    np.testing.assert_allclose(found, arrays[f"{name}.scores"], rtol=1e-4, atol=1e-5)
    right = found.argmax(axis=1) == arrays[f"{name}.answers"]
    kinds = arrays[f"{name}.types"]
    (told,) = values(name, "egomcq_accuracy_metrics")
    assert [100 * right[kinds == kind].mean() for kind in np.unique(kinds)] == pytest.approx(
        list(told.values()), rel=RTOL
    )


@pytest.mark.parametrize("name", ["nlg_metrics", "narrator.one", "narrator.two_returned", "narrator.early_stop"])
def test_sentences(name: str) -> None:
    told = TOLD[name]
    said, references = told["hypotheses"], told["references"]
    wanted = told.get("metrics") or told["all_at_once"]
    counts = [bleu_counts(*pair) for pair in zip(said, references, strict=True)]
    rouge = [rouge_l(*pair) for pair in zip(said, references, strict=True)]
    each = cider(said, [[one] for one in references], by_blanks)
    np.testing.assert_allclose(bleu(counts), [wanted[f"Bleu_{n}"] for n in range(1, 5)], rtol=RTOL)
    assert np.mean(rouge) == pytest.approx(wanted["ROUGE_L"], rel=RTOL)
    assert np.mean(each) == pytest.approx(wanted["CIDEr"], rel=RTOL)
    if "scores" in told:
        np.testing.assert_allclose(rouge, told["scores"]["ROUGE_L"]["each"], rtol=RTOL)
        np.testing.assert_allclose(each, told["scores"]["CIDEr"]["each"], rtol=RTOL)
        every = [bleu([one]) for one in counts]
        for n in range(4):
            np.testing.assert_allclose([one[n] for one in every], told["scores"][f"Bleu_{n + 1}"]["each"], rtol=1e-5)


@pytest.mark.slow
def test_meteor() -> None:
    folder = find_tables()
    if folder is None:
        pytest.skip("METEOR's tables are not here: pip install pycocoevalcap")
    names = ("nlg_metrics", "narrator.one", "narrator.two_returned", "narrator.early_stop")
    pairs = {name: list(zip(TOLD[name]["hypotheses"], TOLD[name]["references"], strict=True)) for name in names}
    counts = iter(meteor_counts([pair for some in pairs.values() for pair in some], folder))
    for name in names:
        own = [next(counts) for _ in pairs[name]]
        wanted = TOLD[name].get("metrics") or TOLD[name]["all_at_once"]
        assert meteor(own) == pytest.approx(wanted["METEOR"], rel=RTOL)
        if "scores" in TOLD[name]:
            np.testing.assert_allclose(
                [meteor([one]) for one in own], TOLD[name]["scores"]["METEOR"]["each"], rtol=RTOL
            )


def test_questions_see_the_originals_frames(tmp_path: Path) -> None:
    """What the original read in vain before it chose again is among its reads, too."""
    from test_golden_datasets import under

    exam = open_ego_mcq(DataFolder(GOLDEN / "datasets" / "Ego4D", tmp_path), PROTOCOLS["ego_mcq"]["zero-shot"])
    assert isinstance(exam, Choice)
    clips = replace(exam.clips, look=under("ego4d"))  # type: ignore[type-var]
    told = json.loads((GOLDEN / "datasets" / "expected.json").read_text())["egomcq"]
    assert len(exam.queries) == told["length"]
    for i, one in enumerate(told["items"]):
        assert (exam.queries[i], exam.answers[i], exam.kinds[i]) == (one["query"], one["answer"], one["type"])
        theirs = [[file, ids] for file, ids in one["reads"] if ids]
        for option in exam.options[i]:
            for read in clips.sample(int(option)).reads:
                while theirs[0] != [f"ego4d/{read.file}", list(read.frames)]:
                    theirs.pop(0)
                theirs.pop(0)
        assert not theirs


def test_spelling() -> None:
    for text, told in TOLD["normalised_by_bert"]:
        assert spelt(text) == told


def test_what_is_kept_of_a_row() -> None:
    for told in TOLD["decode_one"]:
        assert kept_ids(told["ids"], told["end"], len(told["ids"])) == told["kept"]


@pytest.fixture(scope="module")
def narrated() -> Any:
    """The recorded narrator, and its clips with what people said of them."""
    pytest.importorskip("torch")
    from lavila_fast.engines.host.eager import TorchRuntime
    from lavila_fast.models.load import load_narrator

    runtime = TorchRuntime(load_narrator(GOLDEN / "narrator_eval.pth"), threads=1)
    with np.load(GOLDEN / "steps.inputs.npz") as file:
        batches = TOLD["narrator.one"]["batches"]
        videos = np.concatenate(file["video"][batches]).astype(np.float32) / 64
        return runtime, videos, np.concatenate(file["caption"][batches])


def perplexity_of(foretold: np.ndarray, caption: list[int], tokens: int) -> float:
    """Early stopping leaves out the last word that was counted, too."""
    return narrators.perplexity(foretold[:tokens], caption[: tokens + 1])


@pytest.mark.parametrize("name", [name for name in TOLD if name.startswith("narrator.") and "metrics" in TOLD[name]])
def test_narrator(name: str, narrated: Any, arrays: dict[str, np.ndarray]) -> None:
    runtime, videos, captions = narrated
    told, words = TOLD[name], TOLD["narrator_words"]
    samples, most = 2 if "two" in name else 1, 14
    said, teacher, free = [], [], []
    for clip, (video, caption) in enumerate(zip(videos, captions.tolist(), strict=True)):
        context = runtime.encode(video[None])
        found = narrators.write(runtime, context, caption, samples, Warp(top_k=1), b"k", most)
        recorded = arrays[f"{name}.ids"][clip * samples : (clip + 1) * samples]
        # With early stopping a batch goes no further than its last sentence: -1 fills up what was not written.
        limit, counted = (int((arrays[f"{name}.{one}"][clip] >= 0).sum()) for one in ("ids", "teacher_ids"))
        known = min(found.ids.shape[1], limit)
        np.testing.assert_array_equal(found.ids[:, :known], recorded[:, :known])
        said.append(spelt("".join(words[str(i)] for i in kept_ids(found.ids[0].tolist()[:limit], 130, limit))))
        given = narrators.foretold(runtime, context, caption)
        teacher.append(perplexity_of(given, caption, counted if "early" in name else most))
        free += [perplexity_of(row, caption, limit if "early" in name else most) for row in found.foretold]
    assert said == told["hypotheses"][::samples]
    np.testing.assert_allclose(free, arrays[f"{name}.ppl"], rtol=1e-4)
    np.testing.assert_allclose(teacher, arrays[f"{name}.teacher_ppl"], rtol=1e-4)
    people = [spelt("".join(words[str(i)] for i in kept_ids(row, 130, most))) for row in captions.tolist()]
    assert people == told["references"][::samples]
