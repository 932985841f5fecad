"""A narrator under examination: what it writes of a clip, and how well it would have foretold what people said.

Two perplexities, as in LaViLa's script. With a teacher, the narrator is fed people's sentence and asked for each next
word of it. Without, it is fed its own, which it goes on with beyond its end, and is asked for the word that stands at
the same place in people's sentence. Id 0 counts for nothing: it fills rows, and in OpenAI's vocabulary it is "!", too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.clip_model import bundle_tokenizer
from lavila_fast.config import VisionConfig
from lavila_fast.engines.choose import open_checkpoint, open_runtime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.engines.sampling import Warp
from lavila_fast.exams.examinees import ModelChoice, bundle_identity, is_bundle
from lavila_fast.exams.protocols import Protocol
from lavila_fast.exams.sentences import kept_ids
from lavila_fast.files import sha256
from lavila_fast.generate.randomness import clip_key, uniforms
from lavila_fast.generate.scheduler import end_token
from lavila_fast.pretrained import find_model, find_vocabulary
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.text.tokenizer import PAD


class Written(NamedTuple):
    """Of a clip: rows (samples, L) of ids, and the log-probability of each target (samples, L - 1); 0 for id 0."""

    ids: I64
    foretold: F64


def foretold(runtime: NarratorRuntime, context: Any, target: Sequence[int]) -> F64:
    """Log-probability of each word of a sentence behind the first token, given those before it; 0 for id 0."""
    state, found = runtime.begin(), []
    runtime.join(state, context, 1)
    for place, token in enumerate(target[1:]):
        if place:
            runtime.step(state, np.array([target[place]]))
        found.append(_of(runtime.logprobs(state), token)[0])
    return np.asarray(found, np.float64)


def _of(logprobs_NV: F32, token: int) -> F32:
    return np.zeros(len(logprobs_NV), np.float32) if token == PAD else logprobs_NV[:, token]


def write(
    runtime: NarratorRuntime, context: Any, target: Sequence[int], samples: int, warp: Warp, key: bytes, most: int
) -> Written:
    """Write sentences of a clip, beyond their ends as long as there are targets.

    Args:
        runtime: The engine.
        context: Of one clip.
        target: People's sentence, first token and end included.
        samples: How many.
        warp: How words are drawn.
        key: Of the random numbers.
        most: Tokens of a sentence, first token included.
    """
    state, end = runtime.begin(), end_token(runtime)
    runtime.join(state, context, samples)
    ids, found = [np.full(samples, end, np.int64)], []
    ended = np.zeros(samples, bool)
    for place in range(1, most):
        asked = target[place] if place < len(target) else PAD
        found.append(_of(runtime.logprobs(state), asked))
        chosen = runtime.sample(state, warp, uniforms(key, range(samples), [place - 1])[:, 0])
        ids.append(np.asarray(chosen.tokens, np.int64))
        ended |= ids[-1] == end
        if place == most - 1 or (ended.all() and place + 1 >= len(target)):
            break
        runtime.step(state, ids[-1])
    return Written(np.stack(ids, axis=1), np.stack(found, axis=1).astype(np.float64))


def perplexity(foretold_L: F64, target: Sequence[int]) -> float:
    """Of people's sentence, from the log-probabilities of its words; nan for one without words."""
    words = sum(token != PAD for token in target[1 : len(foretold_L) + 1])
    return float(np.exp(-foretold_L.sum() / words)) if words else float("nan")


@dataclass
class NarratorExaminee:
    """A narrator, its vocabulary, and what it depends on."""

    runtime: NarratorRuntime
    words: Tokenizer
    identity: dict[str, str]
    kind: str = "narrator"
    heads: tuple[int, ...] = ()
    unit: bool = False

    @property
    def vision(self) -> VisionConfig:
        """Its input."""
        return self.runtime.config.vision

    def answer(self, video_3TSS: F32, name: str, reference: str, protocol: Protocol) -> NDArray[Any]:
        """What it says of a clip, as JSON: sentences, and both perplexities of people's."""
        context = self.runtime.encode(video_3TSS[np.newaxis])
        config = self.runtime.config
        most = min(protocol.max_tokens, config.max_tokens, config.text.n_positions)
        target = self.words.rows([reference])[0]
        warp = Warp(protocol.temperature, None, protocol.top_p)
        key = clip_key(protocol.seed, name, 0.0)
        found = write(self.runtime, context, target, protocol.samples, warp, key, most)
        teacher = foretold(self.runtime, context, target[:most])
        end = end_token(self.runtime)
        told = {
            "said": [self.words.decode(kept_ids(row.tolist(), end, most)) for row in found.ids],
            "perplexity": perplexity(teacher, target),
            "free_perplexity": [perplexity(row, target) for row in found.foretold],
        }
        return np.array(json.dumps(told))


def open_narrator(choice: ModelChoice) -> NarratorExaminee:
    """Open a narrator; errors as for `examinees.open_examinee`."""
    path = find_model(choice.model)
    if not is_bundle(path):
        runtime = open_checkpoint(path, choice.engine, choice.threads)
        words = find_vocabulary(path, "gpt2", runtime.config.max_tokens, choice.tokenizer)
        identity = {"name": path.name, "engine": runtime.identity, "sha256": sha256(path)[:16], "precision": "fp32"}
        identity["vocabulary"] = hashlib.sha256(words.digest.encode()).hexdigest()[:16]
        return NarratorExaminee(runtime, words, identity)
    bundle = open_bundle(path)
    config = bundle.narrator
    words = load_tokenizer(*bundle_tokenizer(bundle, "narrator"), config.max_tokens)
    runtime = open_runtime(bundle, choice.engine, choice.threads)
    return NarratorExaminee(runtime, words, bundle_identity(bundle, config, runtime.identity))
