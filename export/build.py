"""Checkpoints to bundles: load, quantize, write graphs, prove them, measure parity, and only then be there.

    lavila-fast export narrator-base -o base-int8 --precision int8
    export_model(ExportOptions("narrator.safetensors", Path("bundle"), precision="int8"))

A bundle appears whole or not at all: it is filled in a hidden folder beside its place and renamed when everything
held; the old one stays beside it until then. On CPUs all weights lie once in ``weights.safetensors``, which graphs and
the native engine share.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavila_fast.bundle.engine_key import NEVER_RUN
from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.manifest import MANIFEST, Bundle, open_bundle
from lavila_fast.config import ModelConfig
from lavila_fast.errors import InputError
from lavila_fast.export.engine_axes import axes_for, read_plan, write_plan
from lavila_fast.export.engines import EngineOptions, build_engines
from lavila_fast.export.graphs.specs import Spec, specs_for
from lavila_fast.export.graphs.to_onnx import OPSET, write_graph
from lavila_fast.export.graphs.translations import TRANSLATIONS
from lavila_fast.export.graphs.validate import CannotRun, GraphError, check_declaration, validate
from lavila_fast.export.graphs.weights import WeightFile, named_weights
from lavila_fast.export.options import ExportOptions
from lavila_fast.export.recipe import complete
from lavila_fast.export.sources import find_checkpoint, require_memory
from lavila_fast.machine import torch_threads
from lavila_fast.models.checkpoint import weights_digest
from lavila_fast.models.load import Model, load_dual_encoder, load_model
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.presets import CLIP_SECONDS, tokenizer_kind
from lavila_fast.pretrained import find_vocabulary
from lavila_fast.quant.scheme import Scheme, layers, quantize

PARITY_CLIPS = 32
TOKENIZERS = {"narrator": "narrator_tokenizer.json", "dual_encoder": "text_tokenizer.json"}
# An engine may round a float16 product or an int8 level to the other side; float32 has no such excuse.
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.25, "mixed": 0.25}
HALF_TOLERANCE = 0.1


Say = Callable[[str], None]


def export_model(options: ExportOptions, say: Say = lambda _: None) -> Bundle:
    """Make a bundle.

    Args:
        options: What of what.
        say: Called with a line at each step.

    Raises:
        InputError: options, names or files that make no sense; too little memory.
        CheckpointError: weights that cannot be read, or a vocabulary that is nowhere.
        ExportError: a graph is not what it should be.
        LavilaError: parity failed (see `export.parity.bundle`).
    """
    torch.set_num_threads(torch_threads(options.threads, torch.get_num_threads()))
    restore(options.output)
    checkpoint = find_checkpoint(options.model)
    require_memory([path for path in (checkpoint, options.dual_encoder) if path])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=f".{options.output.name}.") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        bundle = _Build(options, checkpoint, folder, say).run()
        swap_in(folder, options.output)
    shutil.rmtree(calibration_part(options.output), ignore_errors=True)
    return replace(bundle, folder=options.output)


def _aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.old")


def restore(output: Path) -> None:
    """Put back the bundle that an export which was stopped halfway left aside."""
    if _aside(output).is_dir() and not output.exists():
        _aside(output).rename(output)


def swap_in(folder: Path, output: Path) -> None:
    """Move a finished bundle to its place; the one before lies beside it, as ``.NAME.old``, until that is done."""
    old = _aside(output)
    if output.exists():
        if (old / MANIFEST).is_file():
            shutil.rmtree(old)
        output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        restore(output)
        raise
    if (old / MANIFEST).is_file() or (old.is_dir() and not any(old.iterdir())):
        shutil.rmtree(old)


def calibration_part(output: Path) -> Path:
    """Where an export keeps what it measured until its bundle is there, so that a killed one need not start over."""
    return output.with_name(f"{output.name}.calibration.part")


class _Build:
    """One export; its steps in order are the body of `run`."""

    def __init__(self, options: ExportOptions, checkpoint: Path, folder: Path, say: Say) -> None:
        self.options, self.checkpoint, self.folder, self.say = options, checkpoint, folder, say
        self.measured: dict[str, dict[str, Any]] = {}

    def run(self) -> Bundle:
        references, words = self._load()
        models = self._quantize(references)
        store = self._store(models)
        errors: dict[str, Any] = {}
        for model in models.values():
            for spec in graphs_for(model, self.options.target):
                self._write(spec, store, errors)
        bundle = self._describe({kind: model.config for kind, model in models.items()}, words, errors)
        bundle = replace(bundle, checkpoints={kind: weights_digest(model) for kind, model in references.items()})
        if self.options.target in ("tensorrt", "jetson", "rtx"):
            write_plan(self.folder, axes_for(bundle.models))
        bundle.save()
        if self.options.target == "rtx":
            self._build_rtx(bundle)
        return self._parity(references) if self.options.parity else bundle

    def _load(self) -> tuple[dict[str, Model], dict[str, Any]]:
        options = self.options
        self.say(f"loading {self.checkpoint}")
        first = load_model(self.checkpoint)
        found = {first.config.kind: (first, self.checkpoint, options.tokenizer)}
        if options.dual_encoder is not None and isinstance(first, NarratorModel):
            dual = load_dual_encoder(options.dual_encoder)
            found["dual_encoder"] = (dual, options.dual_encoder, options.text_tokenizer)
        elif options.dual_encoder is not None:
            raise InputError(
                f"{self.checkpoint}: a {first.config.kind}; a dual encoder rides along with narrators only"
            )
        words: dict[str, Any] = {}
        models: dict[str, Model] = {}
        for kind, (model, path, given) in found.items():
            models[kind] = model
            if speaks := tokenizer_kind(model.config):
                context = getattr(model.config, "max_tokens", 77)
                find_vocabulary(path, speaks, context, given).save(self.folder / TOKENIZERS[kind])
                words[kind] = {"kind": speaks, "file": TOKENIZERS[kind]}
        if options.card:
            shutil.copyfile(options.card, self.folder / "MODEL_CARD.md")
        return models, words

    def _quantize(self, references: dict[str, Model]) -> dict[str, Model]:
        options, kept = self.options, self.options.keep
        known = {kind: frozenset(layers(model)) for kind, model in references.items()} if kept else {}
        unknown = kept.difference(*known.values())
        if unknown:
            raise InputError(f"layer {min(unknown)!r} is not in this model; a sensitivity report names those that are")
        if options.precision == "fp32":
            return references
        models: dict[str, Model] = {}
        for kind, model in references.items():
            scheme = Scheme(options.precision, options.target, kept & known.get(kind, kept), {})
            ready, scheme, self.measured[kind] = complete(
                *(model, scheme, options.calibration, options.max_drop),
                *(self.folder, calibration_part(options.output), self.say),
            )
            self.say(f"{kind}: {options.precision} for {options.target}")
            models[kind] = quantize(ready, scheme)
        return models

    def _store(self, models: dict[str, Model]) -> WeightFile | None:
        if self.options.target != "cpu":
            return None
        self.say(f"writing {WEIGHTS}")
        tensors: dict[str, Tensor] = {}
        for kind, model in models.items():
            tensors |= dict(named_weights(model, f"{kind}."))
        return WeightFile(self.folder / WEIGHTS, tensors, half=self.options.precision == "fp16")

    def _write(self, spec: Spec, store: WeightFile | None, errors: dict[str, Any]) -> None:
        path = self.folder / f"{spec.name}.onnx"
        half = self.options.target != "cpu" and self.options.precision in ("fp16", "bf16")
        spec = replace(spec, tolerance=HALF_TOLERANCE if half else TOLERANCE[self.options.precision])
        self.say(f"{path.name}: writing")
        write_graph(spec, path, TRANSLATIONS, store, opset_for(spec))
        try:
            found: GraphError | str = validate(spec, path)
        except CannotRun as error:  # a type that no CPU computes with: the declaration is all that can be checked
            check_declaration(spec, path)
            found = str(error)
        self.say(f"{path.name}: {found if isinstance(found, str) else f'relative error {found.relative:.2g}'}")
        errors[spec.name] = asdict(found) if isinstance(found, GraphError) else {"not computed": found}

    def _describe(self, models: dict[str, ModelConfig], words: dict[str, Any], errors: dict[str, Any]) -> Bundle:
        options = self.options
        return Bundle(
            self.folder,
            options.name or options.output.name,
            models,
            CLIP_SECONDS,
            precision=dict.fromkeys(errors, options.precision),
            tokenizer=words,
            target=options.target,
            opset=OPSET,
            built_with={package: version(package) for package in ("torch", "onnx", "lavila-fast")},
            note=options.note,
            engines=engines_for(options.target),
            parity={"graphs": errors},
            calibration={kind: told for kind, told in self.measured.items() if told},
            native=options.target == "cpu",
        )

    def _build_rtx(self, bundle: Bundle) -> None:
        """TensorRT-RTX builds for cards that are not here, so its engines can come with the bundle."""
        axes = read_plan(self.folder, bundle.models)
        build_engines(self.folder, EngineOptions("tensorrt_rtx", axes=axes), say=self.say)

    def _parity(self, references: dict[str, Model]) -> Bundle:
        from lavila_fast.evaluate.clips import FolderClips
        from lavila_fast.export.parity.bundle import check_bundle

        self.say("parity: comparing the bundle with the checkpoint")
        folder, page = self.options.calibration, find_spec("matplotlib") is not None
        clips = None if folder is None else FolderClips(folder, PARITY_CLIPS)
        report = check_bundle(
            self.folder, references, clips=clips, threads=self.options.threads, page=page, strict=not self.options.force
        )
        self.say(f"parity: {report.verdict}")
        return open_bundle(self.folder)


def graphs_for(model: Model, target: str) -> list[Spec]:
    """The graphs of a model for a target: the GPU's decoder keeps its caches in place."""
    specs: list[Spec] = specs_for(model)
    if target == "cpu" or not isinstance(model, NarratorModel):
        return specs
    from lavila_fast.export.graphs.inplace import Update, inplace_spec

    way: Update = "tensor_scatter" if target in ("tensorrt", "rtx") else "scatter_nd"
    return [specs[0], inplace_spec(model, way=way)]


def opset_for(spec: Spec) -> int:
    """The operator set a graph needs."""
    from lavila_fast.export.graphs.inplace import OPSETS, InplaceDecoder

    opset: int = OPSETS[spec.module.way] if isinstance(spec.module, InplaceDecoder) else OPSET
    return opset


def engines_for(target: str) -> dict[str, str]:
    """What is known of engines with graphs for a target, where this was built."""
    if target == "cpu":
        return {"onnxruntime": "graphs validated on the machine that built them"}
    assert target in NEVER_RUN
    return {target: "never run: no such device where this was built; graphs were compared on the CPU"}
