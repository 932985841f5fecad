"""What is measured of dual encoders and classifiers, as `measure` does of narrators: the runtimes that ship beside the
PyTorch model, on the same clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from lavila_fast.arrays import F32, I64
from lavila_fast.engines.protocol import ClassifierRuntime, DualEncoderRuntime
from lavila_fast.export.parity.limits import Section
from lavila_fast.export.parity.measure import Errors
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder

Pairs = dict[str, tuple[F32, F32]]  # video and text: the reference's embeddings and the engine's


@torch.inference_mode()
def dual_parity(
    model: DualEncoder,
    runtimes: Mapping[str, DualEncoderRuntime],
    videos: Iterable[F32],
    ids: I64,
    mask: I64 | None,
) -> dict[str, tuple[Section, Pairs]]:
    """Embeddings of clips and sentences, of the reference and of each engine: sections without checks, by engine."""
    t_mask = None if mask is None else torch.from_numpy(mask)
    seen: list[F32] = []
    shown: dict[str, list[F32]] = {name: [] for name in runtimes}
    for video in videos:
        seen.append(model.embed_video(torch.from_numpy(video)).numpy())
        for name, runtime in runtimes.items():
            shown[name].append(runtime.video(video))
    reads = [slice(i, i + 64) for i in range(0, len(ids), 64)]
    read = [model.embed_text(torch.from_numpy(ids[r]), None if t_mask is None else t_mask[r]).numpy() for r in reads]
    found: dict[str, tuple[Section, Pairs]] = {}
    for name, runtime in runtimes.items():
        pairs = {
            "video": (np.concatenate(seen), np.concatenate(shown[name])),
            "text": (np.concatenate(read), runtime.text(ids, mask)),
        }
        found[name] = _dual_section(name, pairs), pairs
    return found


def _dual_section(engine: str, pairs: Pairs) -> Section:
    section = Section("dual_encoder", engine, "")
    for name, (a, b) in pairs.items():
        errors = Errors()
        for one, other in zip(a, b, strict=True):
            errors.add([one], [other])
        section.graphs[f"dual_{name}"] = errors.figures()
        cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        section.figures |= {f"{name}_cosine_min": float(cosine.min()), f"{name}_cosine_mean": float(cosine.mean())}
    scores_a, scores_b = (pairs["video"][i] @ pairs["text"][i].T for i in (0, 1))
    section.figures["ranking_first_equal"] = float((scores_a.argmax(1) == scores_b.argmax(1)).mean())
    section.figures["ranking_first_10_shared"] = shared(scores_a, scores_b, 10)
    return section


def shared(a: F32, b: F32, k: int) -> float:
    """Mean share of each row's first `k` columns that two matrices of scores have in common."""
    k = min(k, a.shape[1])
    first = [np.argsort(-scores, axis=1, kind="stable")[:, :k] for scores in (a, b)]
    return float(np.mean([len(set(x) & set(y)) / k for x, y in zip(*map(np.ndarray.tolist, first), strict=True)]))


@torch.inference_mode()
def classifier_parity(
    model: Classifier, runtimes: Mapping[str, ClassifierRuntime], videos: Iterable[F32]
) -> dict[str, Section]:
    """Logits of every head, of the reference and of each engine: sections without checks, by engine."""
    errors = {name: Errors() for name in runtimes}
    alike: dict[str, list[list[bool]]] = {name: [] for name in runtimes}
    for batch in videos:
        out = model(torch.from_numpy(batch))
        wanted = [t.numpy() for t in (out if isinstance(out, tuple) else (out,))]
        for name, runtime in runtimes.items():
            got = runtime.logits(batch)
            for i in range(len(batch)):
                errors[name].add([a[i] for a in wanted], [b[i] for b in got])
                alike[name].append([bool(a[i].argmax() == b[i].argmax()) for a, b in zip(wanted, got, strict=True)])
    sections = {name: Section("classifier", name, "") for name in runtimes}
    for name, section in sections.items():
        section.graphs["classifier"] = errors[name].figures()
        section.figures["top1_agreement"] = float(np.mean(alike[name]))
    return sections
