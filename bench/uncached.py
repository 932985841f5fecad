"""The loop of the original, without a cache, in our reference models: what every speed-up here is measured against.

Every step feeds the whole prefix of every sample again, through attention to all visual tokens, and sorts the
vocabulary for top-p. Needs torch and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lavila_fast.config import NarratorConfig
from lavila_fast.engines.sampling import Warp
from lavila_fast.models.narrator import NarratorModel

SAMPLES, TOKENS = 10, 77
WARP = Warp(temperature=0.7, top_p=0.95)
PREFIXES = (1, 10, 25, 50, 76)


def random_narrator(seed: int = 0, config: NarratorConfig | None = None, device: str = "cpu") -> NarratorModel:
    """Random weights (default: of TSF-B + GPT-2); the gates are open and the logits spread, as in a trained model."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = NarratorModel(config or NarratorConfig()).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 0:
                p.fill_(0.5)
            elif "norm" not in name and ".ln_" not in name and p.ndim > 1:
                p.normal_(std=0.04)
    return model


@torch.inference_mode()
def uncached_step(model: NarratorModel, tokens_NQE: Tensor, ids_NL: Tensor) -> Tensor:
    """One step as the original runs it: logits of the whole prefix, warp by sorting, draw; (N, 1) next ids."""
    last = model.logits(tokens_NQE, ids_NL)[:, -1]
    torch.special.entr(last.softmax(-1)).sum(-1)  # its score
    scores, order = (last / WARP.temperature).sort(descending=True)
    share = scores.softmax(-1)
    drop = share.cumsum(-1) - share > WARP.top_p
    return order.gather(-1, scores.masked_fill(drop, -torch.inf).softmax(-1).multinomial(1))


def uncached_work(model: NarratorModel, video: Tensor) -> dict[str, Callable[[], Any]]:
    """The pieces of the uncached loop that are timed: encoding, and a step at each of `PREFIXES`."""
    with torch.inference_mode():
        tokens = model.visual_tokens(video).repeat_interleave(SAMPLES, 0)
    ids = torch.randint(0, model.config.text.vocab - 1, (SAMPLES, TOKENS), device=video.device)

    def encode() -> None:
        with torch.inference_mode():
            model.visual_tokens(video)

    steps = {f"step {n}": partial(uncached_step, model, tokens, ids[:, :n]) for n in PREFIXES}
    return {"uncached encode": encode, **steps}
