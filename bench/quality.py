"""What speed costs: points of the shipped small model's quality that each precision loses against PyTorch float32.

Sentences are greedy; clips come from real video files of the miniature kitchen, both splits. A point is a hundredth of
the clips (sentences) or of the mean (retrieval); what is quoted is the worst of all splits and engines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.bench.timing import ROOT
from lavila_fast.bundle.manifest import Bundle, open_bundle
from lavila_fast.config import ClipTextConfig, DualEncoderConfig
from lavila_fast.engines.choose import open_runtime
from lavila_fast.engines.device.ort import OrtSlotRuntime
from lavila_fast.engines.embed import GraphDualEncoder
from lavila_fast.engines.host.eager import TorchRuntime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.evaluate.clips import UNSEEN_SPLITS, Clips, filmed_clips
from lavila_fast.evaluate.kitchen import distinct_sentences, retrieval_items, sentence_items, write_greedily
from lavila_fast.export.build import export_model
from lavila_fast.export.options import ExportOptions
from lavila_fast.models.load import load_dual_encoder, load_narrator
from lavila_fast.pretrained import ASSETS
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.video.transforms import normalise

NANO_WEIGHTS = ROOT / "tests" / "data" / "nano"
TARGET_OF_PRECISION = {"int8": "cpu", "fp16": "cuda"}  # fp16: the strongly typed graphs, run on the CPU
RETRIEVAL = ("video_to_text_map", "text_to_video_map", "video_to_text_ndcg", "text_to_video_ndcg")
Attempt = Callable[[str, Callable[[], Any]], Any]


@dataclass
class Quality:
    """The shipped model, its reference quality, and what engines lose.

    Attributes:
        films: Folder in which the kitchen's films are kept.
        clips: Of each split.
        threads: Of the engines.
        attempt: Runs a callable, or notes why it failed and gives None.
        rows: One for each split and engine.
    """

    films: Path
    clips: int
    threads: int
    attempt: Attempt
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Open what is compared with."""
        self.narrator = load_narrator(NANO_WEIGHTS / "narrator.safetensors")
        self.dual = load_dual_encoder(NANO_WEIGHTS / "dual_encoder.safetensors")
        self.words = load_tokenizer(NANO_WEIGHTS / "narrator_tokenizer.json", "gpt2", self.narrator.config.max_tokens)
        self.texts: Tokenizer = load_tokenizer(NANO_WEIGHTS / "text_tokenizer.json", "clip", _context(self.dual.config))

    def measure(self, scratch: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """Export both precisions and compare them on both splits; the worst losses, by the names of the last line."""
        engines: dict[str, NarratorRuntime] = {}
        duals: dict[str, GraphDualEncoder] = {}
        for precision, target in TARGET_OF_PRECISION.items():
            say(f"shipped model, {precision} for {target} …")
            bundle = self.attempt(f"nano {precision}", partial(self._export, scratch, precision, target))
            if bundle is not None:
                engines |= self._engines(bundle, precision)
                dual = self.attempt(f"nano {precision} dual encoder", partial(self._dual, bundle))
                duals |= {precision: dual} if dual else {}
        vision = self.narrator.config.vision
        for split in UNSEEN_SPLITS:
            say(f"{self.clips} kitchen clips, {split} …")
            shown = filmed_clips(split, self.clips, self.films, vision.frames, vision.img)
            self._sentences(split, shown, engines)
            self._retrieval(split, shown, duals)
        return self._worst()

    def _export(self, scratch: Path, precision: str, target: str) -> Bundle:
        shipped = open_bundle(ASSETS / "nano")
        if shipped.target == target and set(shipped.precision.values()) == {precision}:
            return shipped
        bundle: Bundle = export_model(
            ExportOptions(
                NANO_WEIGHTS / "narrator.safetensors",
                scratch / f"nano_{precision}",
                target,
                precision,
                tokenizer=NANO_WEIGHTS / "narrator_tokenizer.json",
                dual_encoder=NANO_WEIGHTS / "dual_encoder.safetensors",
                text_tokenizer=NANO_WEIGHTS / "text_tokenizer.json",
                parity=False,
            )
        )
        return bundle

    def _engines(self, bundle: Bundle, precision: str) -> dict[str, NarratorRuntime]:
        folder, config = bundle.folder, bundle.narrator
        made: dict[str, Callable[[], NarratorRuntime]] = {}
        if bundle.target == "cpu":
            made["native"] = lambda: open_runtime(bundle, "native", self.threads)
            made["onnxruntime"] = lambda: open_runtime(bundle, "onnxruntime", self.threads)
        else:
            made["onnxruntime"] = lambda: OrtSlotRuntime(folder, config, "cpu", threads=self.threads)
        found = {f"{precision} {n}": self.attempt(f"nano {precision} {n}", make) for n, make in made.items()}
        return {name: runtime for name, runtime in found.items() if runtime is not None}

    def _dual(self, bundle: Bundle) -> GraphDualEncoder:
        return GraphDualEncoder(bundle.folder, self.dual.config, self.threads)

    def _sentences(self, split: str, shown: Clips, engines: dict[str, NarratorRuntime]) -> None:
        vision = self.narrator.config.vision
        videos = [normalise(clip, vision.mean, vision.std)[np.newaxis] for clip in shown.frames]

        def right(runtime: NarratorRuntime) -> float:
            said = [self.words.decode(one.ids) for one in write_greedily(runtime, map(runtime.encode, videos))]
            return 100 * float(sentence_items(said, shown.labels)["sentence"].mean())

        reference = right(TorchRuntime(self.narrator))
        for name, runtime in engines.items():
            mine = self.attempt(f"nano {name}, sentences", partial(right, runtime))
            self._note(split, name, len(videos), "sentence", reference, mine)

    def _retrieval(self, split: str, shown: Clips, duals: dict[str, GraphDualEncoder]) -> None:
        import torch

        vision = self.dual.config.vision
        videos = np.stack([normalise(clip, vision.mean, vision.std) for clip in shown.frames])
        texts, different, _ = distinct_sentences(shown.labels)
        ids, _ = self.texts.encode_with_mask(texts)

        def ranked(video: F32, text: F32) -> dict[str, float]:
            items = retrieval_items(video, text, shown.labels, different)
            return {name: 100 * float(items[name].mean()) for name in RETRIEVAL}

        def measured(dual: GraphDualEncoder) -> dict[str, float]:
            return ranked(dual.video(videos), dual.text(ids))

        with torch.inference_mode():
            seen = [self.dual.embed_video(torch.from_numpy(videos[i : i + 8])) for i in range(0, len(videos), 8)]
            reference = ranked(torch.cat(seen).numpy(), self.dual.embed_text(torch.from_numpy(ids)).numpy())
        for precision, dual in duals.items():
            name = f"{precision} onnxruntime"
            made = self.attempt(f"nano {precision}, retrieval", partial(measured, dual))
            for figure in RETRIEVAL if made else ():
                self._note(split, name, len(videos), figure, reference[figure], made[figure])

    def _note(self, split: str, engine: str, clips: int, figure: str, reference: float, mine: float | None) -> None:
        if mine is not None:
            row = {"split": split, "engine": engine, "clips": clips, "figure": figure}
            self.rows.append({**row, "reference": reference, "mine": mine, "points_lost": reference - mine})

    def _worst(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for precision in TARGET_OF_PRECISION:
            for key, figures in (("sentence", ("sentence",)), ("retrieval", RETRIEVAL)):
                lost = [
                    row["points_lost"]
                    for row in self.rows
                    if row["engine"].startswith(precision) and row["figure"] in figures
                ]
                if lost:
                    found[f"parity_{precision}_{key}_points"] = max(lost)
        return found


def _context(config: DualEncoderConfig) -> int:
    """Tokens a text of the shipped dual encoder may have; its text tower is CLIP's."""
    assert isinstance(config.text, ClipTextConfig)
    return config.text.context
