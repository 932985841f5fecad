"""What to export of what: the options, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lavila_fast.bundle.engine_key import FOLDER
from lavila_fast.bundle.manifest import MANIFEST, PLAN, open_bundle
from lavila_fast.errors import BundleError, InputError
from lavila_fast.export.recipe import needs_clips
from lavila_fast.quant.names import PRECISIONS, TARGETS


@dataclass(frozen=True)
class ExportOptions:
    """What to make of what.

    Attributes:
        model: A checkpoint (narrator, dual encoder or classifier), or the name of one that was pulled.
        output: Folder to make; an old bundle there is replaced once the new one is complete.
        target: ``cpu``, ``cuda``, ``tensorrt``, ``jetson`` or ``rtx``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``mixed``. On the CPU fp16 is how weights are stored.
        tokenizer: The model's vocabulary; None looks beside the checkpoint and where `models pull` puts it.
        dual_encoder: Checkpoint of a dual encoder to put beside a narrator, and `text_tokenizer` its vocabulary.
        text_tokenizer: See `dual_encoder`.
        card: A model card in Markdown.
        name: Short name of the bundle; None takes the output's.
        note: One line about it.
        calibration: Folder of videos to measure ranges, sensitivity and parity on.
        max_drop: Points of quality that ``mixed`` may cost.
        keep: Layers that stay in higher precision.
        parity: Compare the finished bundle with the checkpoint.
        force: Keep the bundle even if parity fails.
        threads: Of PyTorch and the engine while checking; None takes all cores.
    """

    model: str | Path
    output: Path
    target: str = "cpu"
    precision: str = "fp32"
    tokenizer: Path | None = None
    dual_encoder: Path | None = None
    text_tokenizer: Path | None = None
    card: Path | None = None
    name: str | None = None
    note: str = ""
    calibration: Path | None = None
    max_drop: float | None = None
    keep: frozenset[str] = frozenset()
    parity: bool = True
    force: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without reading anything."""
        for what, value, known in (("precision", self.precision, PRECISIONS), ("target", self.target, TARGETS)):
            if value not in known:
                raise InputError(f"{what} {value!r} is none of {', '.join(known)}")
        if needs_clips(self.precision, self.target, self.keep) and self.calibration is None:
            raise InputError(f"{self.precision} for {self.target} needs clips; give a folder: --calibration VIDEOS")
        if self.target == "cpu" and self.precision == "bf16":
            raise InputError("bf16 is for GPU targets; on the CPU take fp16 (half the file) or int8 (faster too)")
        if self.max_drop is not None and self.precision != "mixed":
            raise InputError("max_drop is for precision mixed, which keeps layers until it holds")
        for path in (self.dual_encoder, self.card, self.tokenizer, self.text_tokenizer, self.calibration):
            if path is not None and not path.exists():
                raise InputError(f"{path}: no such file or folder")
        if self.output.exists():
            _require_ours(self.output)


def _require_ours(output: Path) -> None:
    """Raise InputError unless it is an empty folder, or a bundle and nothing else: all of it will be replaced."""
    found = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    if not found and output.is_dir():
        return
    try:
        ours = {MANIFEST, PLAN, FOLDER, *open_bundle(output, verify=False).files} if MANIFEST in found else set()
    except BundleError:
        ours = set()
    if not ours:
        raise InputError(f"{output}: not empty and not a bundle; choose another folder")
    if others := sorted(found - ours):
        raise InputError(f"{output}: {others[0]} in it is not the bundle's; move it away, or choose another folder")
