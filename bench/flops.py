"""How many floating-point operations a narration takes, counted from the sizes alone.

A multiplication and an addition are two. Only matrix products and attention count, as in every such figure; norms,
activations and softmax do not. INT8 products count the same. Letters: T frames, N patches a frame, S = 1 + T·N tokens,
D width of the encoder, Q visual tokens, E width of the decoder, V vocabulary.
"""

from __future__ import annotations

from lavila_fast.config import GPT2Config, NarratorConfig, VisionConfig

POOL_HEAD = 64  # head size of the attention pool, whatever the width


def timesformer(config: VisionConfig, frames: int | None = None) -> int:
    """All tokens of one clip: patches, then divided attention over time and over space, and the MLP, in every block.

    CLS sees all S tokens in both attentions; a patch sees CLS and its own group of T or N.
    """
    T, N, D = frames or config.frames, config.patches, config.dim
    S = 1 + T * N
    patches = 2 * T * N * (3 * config.patch**2) * D
    projections = 2 * S * D * (3 * D + D)
    cls = 4 * S * D
    time, space = 4 * T * N * (T + 1) * D, 4 * T * N * (N + 1) * D
    mlp = 2 * S * D * (4 * D) * 2
    return patches + config.depth * (2 * projections + 2 * cls + time + space + mlp)


def embed_video(config: VisionConfig, frames: int | None = None) -> int:
    """The CLS token of one clip: the last block's space attention has one query, and its MLP one row."""
    T, N, D = frames or config.frames, config.patches, config.dim
    rest = T * N  # tokens whose queries, outputs and MLP the last block leaves out
    spared = 2 * rest * D * (D + D) + 4 * T * N * (N + 1) * D + 2 * rest * D * (4 * D) * 2
    return timesformer(config, frames) - spared


def embed_text(width: int, layers: int, tokens: int) -> int:
    """One text of CLIP's tower; the last layer has one query, and its MLP one row. The projection does not count."""
    W, L = width, tokens
    layer = 2 * L * W * (3 * W + W) + 2 * L * (L + 1) * W + 2 * L * W * (4 * W) * 2
    last = 2 * L * W * (2 * W) + 2 * W * (W + W) + 4 * L * W + 2 * W * (4 * W) * 2
    return (layers - 1) * layer + last


def pool(config: NarratorConfig, frames: int | None = None) -> int:
    """The attention pool of one clip; the projection of its constant queries is folded away."""
    S = 1 + (frames or config.vision.frames) * config.vision.patches
    inner = config.pool_heads * POOL_HEAD
    keys_values = 2 * S * config.vision.dim * (2 * POOL_HEAD)
    attention = 4 * config.queries * inner * S
    return keys_values + attention + 2 * config.queries * inner * config.text.n_embd


def cross_keys_values(config: NarratorConfig) -> int:
    """Cross-attention keys and values of every gated block, once a clip."""
    width = config.text.n_embd
    return len(config.text.cross_layers) * 2 * config.queries * width * (2 * width)


def encode_clip(config: NarratorConfig) -> int:
    """All that is done once a clip: encoder, pool, keys and values."""
    return timesformer(config.vision) + pool(config) + cross_keys_values(config)


def step(config: NarratorConfig, past: int) -> int:
    """One token of one row: `past` tokens before it, then itself; the head included."""
    text, E = config.text, config.text.n_embd
    own = 2 * E * (3 * E + E) + 2 * E * (4 * E) * 2 + 4 * (past + 1) * E
    gated = 2 * E * (E + E) + 2 * E * (4 * E) * 2 + 4 * config.queries * E
    return text.n_layer * own + len(text.cross_layers) * gated + 2 * E * text.vocab


def decode(config: NarratorConfig, tokens: int, samples: int = 1) -> int:
    """`samples` sentences of one clip, `tokens` chosen each: the first step is shared by all samples."""
    return step(config, 0) + samples * sum(step(config, past) for past in range(1, tokens))


def uncached_decode(config: NarratorConfig, tokens: int, samples: int = 1) -> int:
    """The same as the original computes it: each step feeds the whole prefix, and its keys of the clip, again."""
    text: GPT2Config = config.text
    E, Q = text.n_embd, config.queries
    # Every token of the prefix is paid as a step whose attention spans the whole prefix, masked or not.
    fed = sum(n * (step(config, n - 1)) for n in range(1, tokens + 1))
    again = tokens * len(text.cross_layers) * 2 * Q * E * (2 * E)
    return samples * (fed + again)
