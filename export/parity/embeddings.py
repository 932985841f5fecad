"""What is measured of dual encoders and classifiers, as `measure` does of narrators: the runtime that ships beside the
PyTorch model, on the same clips.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lavila_fast.arrays import F32, I64
from lavila_fast.export.parity.limits import Section
from lavila_fast.export.parity.measure import Errors
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder


@torch.inference_mode()
def dual_parity(
    model: DualEncoder, runtime: Any, videos: Iterable[F32], ids: I64, mask: I64 | None
) -> tuple[Section, dict[str, tuple[F32, F32]]]:
    """Embeddings of clips and sentences, reference and engine: a section without checks, and the embeddings."""
    t_mask = None if mask is None else torch.from_numpy(mask)
    shown = [(model.embed_video(torch.from_numpy(v)).numpy(), runtime.video(v)) for v in videos]
    reads = [slice(i, i + 64) for i in range(0, len(ids), 64)]
    wanted = [model.embed_text(torch.from_numpy(ids[r]), None if t_mask is None else t_mask[r]).numpy() for r in reads]
    got = [runtime.text(ids[r], None if mask is None else mask[r]) for r in reads]
    video_a, video_b = (np.concatenate(part) for part in zip(*shown, strict=True))
    pairs = {"video": (video_a, video_b), "text": (np.concatenate(wanted), np.concatenate(got))}
    section = Section("dual_encoder", "", "")
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
    return section, pairs


def shared(a: F32, b: F32, k: int) -> float:
    """Mean share of each row's first `k` columns that two matrices of scores have in common."""
    k = min(k, a.shape[1])
    first = [np.argsort(-scores, axis=1, kind="stable")[:, :k] for scores in (a, b)]
    return float(np.mean([len(set(x) & set(y)) / k for x, y in zip(*map(np.ndarray.tolist, first), strict=True)]))


@torch.inference_mode()
def classifier_parity(model: Classifier, runtime: Any, videos: Iterable[F32]) -> Section:
    """Logits of every head, reference and engine: a section without checks."""
    section, errors = Section("classifier", "", ""), Errors()
    alike: list[list[bool]] = []
    for batch in videos:
        out = model(torch.from_numpy(batch))
        wanted = [t.numpy() for t in (out if isinstance(out, tuple) else (out,))]
        got = runtime.logits(batch)
        for i in range(len(batch)):
            errors.add([a[i] for a in wanted], [b[i] for b in got])
            alike.append([bool(a[i].argmax() == b[i].argmax()) for a, b in zip(wanted, got, strict=True)])
    section.graphs["classifier"] = errors.figures()
    section.figures["top1_agreement"] = float(np.mean(alike))
    return section
