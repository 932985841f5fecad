"""Labels in words instead of a trained head: which of them a window shows most likely, by a dual encoder.

    model = DualEncoder.from_pretrained("nano")
    labels = ZeroShot.of(model, ["opens the drawer", "washes the cup"])
    scores = labels.scores([clip.embedding for clip in model.embed_video("kitchen.mp4")])  # (clips, 2), rows sum to 1

A label's vector is the mean of its sentences', one a template, scaled to length 1 again; a score is the softmax of
cosines over a temperature. The model's own temperature is the one that it was trained with.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lavila_fast.arrays import F32, F64
from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.weights import map_weights
from lavila_fast.dual_encoder import DualEncoder
from lavila_fast.errors import BundleError, InputError, NotFiniteError

MOST_BYTES, MOST_LABELS = 16 << 20, 100_000
LARGEST_SCALE = 100.0  # to which the original clamps the factor of cosines
_LARGEST_LOGARITHM = 100.0  # of a factor that makes sense at all
SUBJECT = "#C C {}"
"""How labels without a mark are put into words where nobody says how: as Ego4D's narrations of who wears the camera."""


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels of a text file, one a line; empty lines are left out.

    Raises:
        InputError: it cannot be read, holds none, too many or one twice, or is no text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a text file, one label a line") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{path}: over {MOST_BYTES >> 20} MiB; give a text file of labels, one a line")
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({error.reason}); save it as UTF-8, one label a line") from error
    return checked_labels([line for line in lines if line], str(path))


def checked_labels(labels: Sequence[str], where: str = "labels") -> tuple[str, ...]:
    """The labels, none empty and all different.

    Raises:
        InputError: they are not, or there are none, or too many.
    """
    if not labels:
        raise InputError(f"{where}: there are no labels; give one a line")
    if len(labels) > MOST_LABELS:
        raise InputError(f"{where}: {len(labels)} labels; give at most {MOST_LABELS}")
    if "\0" in "".join(labels):
        raise InputError(f"{where}: is no text (there are null bytes in it); give a text file, one label a line")
    label, count = Counter(labels).most_common(1)[0]
    if count > 1:
        raise InputError(f"{where}: {label[:60]!r} stands there {count} times; give each label once")
    return tuple(labels)


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, each with one place for the label.

    Raises:
        InputError: one has none.
    """
    for one in templates:
        if one.count("{}") != 1:
            raise InputError(f"--template {one[:60]!r}: write {{}} once, where the label is to stand: {SUBJECT!r}")
    return tuple(templates)


def sentences(label: str, templates: Sequence[str]) -> list[str]:
    """What is embedded for a label; without templates `SUBJECT`, or the label alone where it begins with a mark."""
    chosen = templates or ("{}" if label.startswith("#") else SUBJECT,)
    return [one.replace("{}", label) for one in chosen]


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """Labels as a dual encoder sees them.

    Attributes:
        labels: C of them.
        vectors: (C, E) float32, of unit length.
        temperature: By which cosines are divided before the softmax.
    """

    labels: tuple[str, ...]
    vectors: F32
    temperature: float

    @classmethod
    def of(
        cls, model: DualEncoder, labels: Sequence[str], templates: Sequence[str] = (), temperature: float | None = None
    ) -> ZeroShot:
        """Embed labels.

        Args:
            model: What embeds them, and clips later.
            labels: All different.
            templates: Sentences with ``{}`` for the label, which are averaged; none: see `sentences`.
            temperature: None takes the model's own.

        Raises:
            InputError: labels, templates or a temperature that make no sense, or labels that are one to the model.
        """
        labels, templates = checked_labels(labels), checked_templates(templates)
        found = own_temperature(model) if temperature is None else checked_temperature(temperature)
        texts = model.embed_text([text for label in labels for text in sentences(label, templates)])
        means = texts.reshape(len(labels), -1, model.dim).mean(1, dtype=np.float64)
        vectors = np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)
        _require_apart(labels, vectors, model.tokenizer.context)
        return cls(labels, vectors, found)

    def scores(self, embeddings: F32 | Sequence[F32]) -> F64:
        """The share of each label in each clip, (N, C), from embeddings (N, E); rows sum to 1."""
        clips = np.asarray(embeddings, np.float32).reshape(-1, self.vectors.shape[1])
        return softmax(clips @ self.vectors.T, self.temperature)


def _require_apart(labels: Sequence[str], vectors: F32, tokens: int) -> None:
    """See that the model can tell all labels apart; raises InputError."""
    first: dict[bytes, int] = {}
    for number, vector in enumerate(vectors):
        if (other := first.setdefault(vector.tobytes(), number)) != number:
            told = f"number {other + 1}, {labels[other][:60]!r}, and {number + 1}, {labels[number][:60]!r}"
            why = f"it reads the first {tokens} tokens of a sentence, and not every letter, such as capitals"
            raise InputError(f"labels: {told}, are one to this model ({why}); leave one out, or change --template")


def softmax(logits: F32 | F64, temperature: float = 1.0) -> F64:
    """Over the last axis, of logits divided by a temperature over 0, however small.

    Raises:
        NotFiniteError: the logits are no numbers.
    """
    if not np.isfinite(logits).all():
        raise NotFiniteError(where="the scores of its labels")
    below = logits - logits.max(-1, keepdims=True).astype(np.float64)
    with np.errstate(over="ignore"):  # so far below is nothing
        powers = np.exp(below / temperature)
    return np.asarray(powers / powers.sum(-1, keepdims=True), np.float64)


def checked_temperature(value: float) -> float:
    """A temperature; raises InputError for what is none."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"--temperature {value}: give a number over 0; the smaller, the surer the scores")
    return float(value)


def own_temperature(model: DualEncoder) -> float:
    """What cosines were divided by in training, at least 1 / `LARGEST_SCALE`.

    Raises:
        InputError: the model does not say.
    """
    source = Path(model.opened[0]) if model.opened else None
    try:
        if source is not None and source.is_dir():
            logarithm = float(map_weights(source / WEIGHTS, "dual_encoder.logit_scale")[""])
        else:
            logarithm = float(model.runtime.model.logit_scale.detach())  # type: ignore[attr-defined]  # PyTorch's
    except (BundleError, OSError, KeyError, AttributeError) as error:
        told = source or "this model"
        raise InputError(f"{told}: does not say the temperature of its scores; give --temperature 0.07") from error
    if not abs(logarithm) < _LARGEST_LOGARITHM:  # nor is it one that is no number
        what = f"the temperature of its scores is damaged (logit_scale {logarithm:g})"
        raise InputError(f"{source or 'this model'}: {what}; fetch or export it again, or give --temperature 0.07")
    return 1 / min(math.exp(logarithm), LARGEST_SCALE)


def digest_of(labels: Sequence[Sequence[str]]) -> str:
    """Labels in a word, to compare."""
    count = " + ".join(str(len(some)) for some in labels)
    return f"{count} ({hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16]})"
