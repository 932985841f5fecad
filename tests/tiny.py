"""Tiny random narrators, videos and files for the tests of everything behind the models."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np

from lavila_fast.config import GPT2Config, NarratorConfig, VisionConfig
from lavila_fast.generate.randomness import clip_key
from lavila_fast.generate.scheduler import EncodedClip
from lavila_fast.text import train_bpe

VOCAB, LIMIT = 258, 24


def config(vocab=VOCAB, limit=LIMIT, freq=2):
    vision = VisionConfig(img=32, patch=16, dim=32, depth=1, heads=2, frames=4)
    text = GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab=vocab, n_positions=40, freq=freq)
    return NarratorConfig(vision, text, queries=5, pool_heads=2, max_tokens=limit)


def narrator(sizes=None, seed=0, ending=0.12):
    """A random narrator with open gates, whose words depend on what it sees.

    At every step the end token has a chance of about `ending`, whatever went before.
    """
    import torch

    from lavila_fast.models.narrator import NarratorModel

    sizes = sizes or config()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = NarratorModel(sizes).eval()
        for name, weight in model.named_parameters():
            if ".alpha_" in name:
                weight.fill_(1.0)
            elif name.endswith("weight") and weight.ndim == 2:
                weight.mul_(3.0 if "text_decoder.transformer.h" in name else 1.0)
        words, norm = model.text_decoder.transformer.wte.weight, model.text_decoder.transformer.ln_f
        words.mul_(0.5)
        # One axis of the last norm is constant, and only the end token reads it.
        norm.weight[0], norm.bias[0] = 0.0, 8.0
        words[:, 0], words[-1] = 0.0, 0.0
        others = model(torch.from_numpy(videos(4, sizes)), torch.randint(sizes.text.vocab, (4, 9)))[..., :-1]
        words[-1, 0] = (others.logsumexp(-1).median() + math.log(ending / (1 - ending))) / 8 if ending else -2.0
    return model


def tokenizer(context=LIMIT):
    """258 words: every byte, a pad and the end."""
    return train_bpe([], VOCAB, context)


def videos(count, sizes=None, seed=1):
    """Random normalised clips, (count, 3, T, H, W) float32."""
    vision = (sizes or config()).vision
    shape = count, 3, vision.frames, vision.img, vision.img
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 2


def tasks(runtime, clips, seed=0):
    """A task a clip, encoded when it is taken; its owner is its number."""
    for number in range(len(clips)):
        yield EncodedClip(number, clip_key(seed, "v.mp4", float(number)), runtime.encode(clips[number : number + 1]))


def film(path: Path, seconds=8, fps=10, size=(64, 48)):
    """A real H.264 file of coarse noise that drifts, and changes every two seconds."""
    random = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": str(fps), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(seconds * fps):
            if i % (2 * fps) == 0:
                coarse = random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
            picture = np.roll(np.kron(coarse, np.ones((8, 8, 1), np.uint8)), i, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return path
