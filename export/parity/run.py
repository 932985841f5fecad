"""How faithful a bundle is: its engines beside the PyTorch reference, on the same real clips.

    bundle = open_bundle(Path("my_bundle"))
    models = {"narrator": load_narrator("narrator.pth")}
    report = run_parity(bundle, models, KitchenClips(200, films), engines=("native",))
    write_report(report, bundle)  # parity.json and parity.html, and bundle.json with their hashes
    report.passed, report.failures

What is compared is opened through the runtimes that narrate, so what is checked is what ships.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lavila_fast.arrays import F32
from lavila_fast.bundle.manifest import Bundle
from lavila_fast.config import ClassifierConfig, DualEncoderConfig, VisionConfig, to_dict
from lavila_fast.engines.choose import ENGINES, open_classifier, open_dual_encoder, open_runtime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import BundleError, InputError
from lavila_fast.evaluate.clips import ClipSource
from lavila_fast.evaluate.kitchen import distinct_sentences, narrator_items, retrieval_items
from lavila_fast.export.parity.embeddings import classifier_parity, dual_parity
from lavila_fast.export.parity.limits import LIMITS, Limits, Section, checks_of, precision_of
from lavila_fast.export.parity.measure import NarratorParity, compared, in_batches, reference_sentences
from lavila_fast.export.parity.report import Report, about
from lavila_fast.kitchen.world import all_actions, parse_sentence
from lavila_fast.models.load import Model
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.video.transforms import normalise

R = TypeVar("R")
QualityTask = Literal["auto", "kitchen", "none"]
GRAPHS = {
    "narrator": ("encoder", "decoder", "decoder_inplace"),
    "dual_encoder": ("dual_video", "dual_text"),
    "classifier": ("classifier",),
}
_EXAMPLES = 6


def run_parity(
    bundle: Bundle,
    models: Mapping[str, Model],
    clips: ClipSource,
    *,
    engines: Sequence[str] | Mapping[str, NarratorRuntime] = ("auto",),
    threads: int | None = None,
    limits: Limits | None = None,
    task: QualityTask = "auto",
    references: Mapping[str, str] | None = None,
    quiet: bool = True,
) -> Report:
    """Compare a bundle with reference models.

    Args:
        bundle: An open bundle.
        models: PyTorch models by kind: ``narrator``, ``dual_encoder``, ``classifier``.
        clips: What both are shown.
        engines: Names that `engines.choose` knows; for the narrator, runtimes by name will do, too. Embeddings and
            classes run in those of them that have such models, or in ONNX Runtime.
        threads: Of the engines; None takes all cores.
        limits: What passes; None takes `LIMITS` of the coarsest precision of each model's graphs.
        task: Whether to measure quality on the kitchen: ``auto`` does where the clips are the kitchen's and the
            reference knows it.
        references: Where each model came from, for the report.
        quiet: No progress bars.

    Raises:
        InputError: no model to compare, one of another shape than the bundle's, or ``kitchen`` without kitchen clips.
        BundleError: the bundle lacks graphs, or an engine cannot open them.
    """
    _check_models(bundle, models)
    if task == "kitchen" and clips.labels is None:
        raise InputError(f"{clips.name}: nobody knows what is shown there; --task kitchen needs --clips kitchen")
    begun = time.monotonic()
    run = _Run(bundle, clips, engines, threads, limits, task, quiet)
    sections = [section for kind, model in models.items() for section in run.sections(kind, model)]
    left = {kind: "no reference was given" for kind in bundle.models if kind not in models}
    found = about(bundle, clips, run.count, threads, references or {}, time.monotonic() - begun)
    return Report(found, sections, left, pictures=run.pictures)


def _check_models(bundle: Bundle, models: Mapping[str, Model]) -> None:
    if not models:
        raise InputError(f"{bundle.folder}: no reference to compare with; give a checkpoint")
    for kind, model in models.items():
        if kind not in bundle.models:
            held = ", ".join(bundle.models) or "nothing"
            raise InputError(f"{bundle.folder}: holds {held}, so there is nothing to compare a {kind} with")
        mine, theirs = _flattened(to_dict(bundle.models[kind])), _flattened(to_dict(model.config))
        odd = [name for name in sorted(mine | theirs) if mine.get(name) != theirs.get(name)]
        if odd:
            raise InputError(
                f"{bundle.folder}: its {kind} has {odd[0]} {mine.get(odd[0])}, the reference {theirs.get(odd[0])}; "
                "give the checkpoint that the bundle was made from"
            )


def _flattened(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flattened(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


@dataclass
class _Run:
    """One comparison: what is given, and what comes to light about all sections."""

    bundle: Bundle
    clips: ClipSource
    engines: Sequence[str] | Mapping[str, NarratorRuntime]
    threads: int | None
    limits: Limits | None
    task: QualityTask
    quiet: bool
    count: int = 0
    pictures: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def sections(self, kind: str, model: Model) -> Iterator[Section]:
        """Compare one model, in every engine, and judge it."""
        config = self.bundle.models[kind]
        frames = self.clips.read(config.vision.frames, config.vision.img)
        self.count = len(frames)
        precision = precision_of(self.bundle.precision, GRAPHS[kind])
        compare = {"narrator": self._narrator, "dual_encoder": self._dual, "classifier": self._classifier}[kind]
        for section in compare(model, frames):
            section.precision = precision
            section.checks = list(checks_of(section, self.limits or LIMITS[precision]))
            yield section

    def _videos(self, frames: F32, vision: VisionConfig, what: str) -> Iterator[F32]:
        """Normalised batches (B, 3, T, H, W), with a bar."""
        with tqdm(total=len(frames), desc=what, unit=" clips", disable=self.quiet or None) as bar:
            for batch in in_batches(frames):
                yield np.stack([normalise(clip, vision.mean, vision.std) for clip in batch])
                bar.update(len(batch))

    def _tokenizer(self, kind: str, context: int) -> Tokenizer | None:
        told = self.bundle.tokenizer.get(kind)
        return load_tokenizer(self.bundle.folder / Path(told["file"]).name, told["kind"], context) if told else None

    def _narrator(self, model: NarratorModel, frames: F32) -> Iterator[Section]:
        given = self.engines if isinstance(self.engines, Mapping) else dict.fromkeys(self.engines)
        opened = {name: one or open_runtime(self.bundle, name, self.threads) for name, one in given.items()}
        found = {name: NarratorParity(runtime) for name, runtime in opened.items()}
        wanted: list[tuple[int, ...]] = []
        for videos in self._videos(frames, model.config.vision, "narrator"):
            sentences = reference_sentences(model, videos)
            wanted += [tuple(r[: n + 1].tolist()) for r, n in zip(sentences.ids, sentences.counts, strict=True)]
            for one in found.values():
                one.add(videos, sentences)
        words = self._tokenizer("narrator", model.config.max_tokens)
        for name, one in found.items():
            section = Section("narrator", one.runtime.identity.split()[0] if name == "auto" else name, "")
            one.fill(section, wanted)
            said = [
                [words.decode(ids, clean=True).strip() if words else str(ids) for ids in x] for x in (wanted, one.ids)
            ]
            self._narrator_quality(section, *said)
            section.examples = self._examples(frames, one, *said)
            yield section

    def _narrator_quality(self, section: Section, wanted: list[str], got: list[str]) -> None:
        known = np.mean([parse_sentence(text) is not None for text in wanted]) >= 0.5
        if self._measures(bool(known)):
            assert self.clips.labels is not None
            section.quality = compared(*(narrator_items(said, self.clips.labels) for said in (wanted, got)))

    def _measures(self, known: bool) -> bool:
        return self.clips.labels is not None and (self.task == "kitchen" or (self.task == "auto" and known))

    def _examples(self, frames: F32, one: NarratorParity, wanted: list[str], got: list[str]) -> list[dict[str, Any]]:
        """Different sentences first, then the least sure ones."""
        doubt = [float(kl.mean()) for kl in one.kl]
        order = sorted(range(len(wanted)), key=lambda i: (wanted[i] == got[i], -doubt[i]))[:_EXAMPLES]
        self.pictures |= {i: frames[i].clip(0, 255).astype(np.uint8) for i in order}
        return [{"clip": i, "reference": wanted[i], "engine": got[i], "kl": doubt[i]} for i in order]

    def _dual(self, model: Any, frames: F32) -> Iterator[Section]:
        config: DualEncoderConfig = model.config
        context = min(77, getattr(config.text, "context", 77))
        words = self._tokenizer("dual_encoder", context)
        if words is None:
            raise BundleError(
                f"{self.bundle.folder}: bundle.json names no tokenizer for the dual encoder; export again"
            )
        labels = self.clips.labels
        texts = [action.sentence for action in all_actions()[::48]] if labels is None else distinct_sentences(labels)[0]
        ids, mask = words.encode_with_mask(texts)
        masked = None if words.kind == "clip" else mask.astype(np.int64)
        videos = self._videos(frames, config.vision, "dual encoder")
        for section, pairs in dual_parity(model, self._opened(open_dual_encoder), videos, ids, masked).values():
            if labels is not None and self.task != "none":
                different = distinct_sentences(labels)[1]
                items = [retrieval_items(pairs["video"][i], pairs["text"][i], labels, different) for i in (0, 1)]
                if self._measures(items[0]["video_to_text_recall_at_1"].mean() >= 0.5):
                    section.quality = compared(*items)
            yield section

    def _classifier(self, model: Any, frames: F32) -> Iterator[Section]:
        config: ClassifierConfig = model.config
        videos = self._videos(frames, config.vision, "classifier")
        yield from classifier_parity(model, self._opened(open_classifier), videos).values()

    def _opened(self, open_one: Callable[..., R]) -> dict[str, R]:
        """Each engine that has dual encoders and classifiers; where none was asked for, ONNX Runtime, for any graph."""
        found: dict[str, R] = {}
        asked = [one for one in self.engines if one in ("auto", *ENGINES) or not isinstance(self.engines, Mapping)]
        for name in [one for one in asked if one not in ENGINES or ENGINES[one].embed] or ["onnxruntime"]:
            on_gpu = name == "auto" and self.bundle.target != "cpu"
            runtime = open_one(self.bundle.folder, self.bundle, "onnxruntime" if on_gpu else name, self.threads)
            found[runtime.identity.split()[0] if name == "auto" else name] = runtime  # type: ignore[attr-defined]
        return found
