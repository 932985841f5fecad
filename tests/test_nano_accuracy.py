"""The shipped bundle, on the engine that a user gets, says what is shown in films that nobody has seen before."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL")

from lavila_fast import Narrator
from lavila_fast.evaluate.clips import FIRST_SEED, filmed_clips
from lavila_fast.evaluate.kitchen import sentence_figures, write_greedily
from lavila_fast.video.transforms import normalise

FRESH = FIRST_SEED + 700_000  # neither trained on nor behind any figure of the README


@pytest.mark.slow
@pytest.mark.timeout(1500)  # two thirds of it draws films
def test_shipped_bundle_says_what_is_shown(tmp_path):
    narrator = Narrator.from_pretrained("nano")
    vision = narrator.config.vision
    clips = filmed_clips("unseen_seeds", 300, tmp_path, vision.frames, vision.img, first=FRESH, workers=2)
    contexts = (narrator.runtime.encode(normalise(one, vision.mean, vision.std)[np.newaxis]) for one in clips.frames)
    said = [narrator.tokenizer.decode(one.ids) for one in write_greedily(narrator.runtime, contexts)]
    assert len(said) == 300
    assert sentence_figures(said, clips.labels)["sentence"] >= 0.95
