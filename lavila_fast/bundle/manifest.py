"""A bundle: a folder with everything needed to narrate, and nothing else.

``bundle.json`` says what the model is and how its input is prepared, and carries the SHA-256 of every file beside it;
a file that was swapped, cut short or forgotten is noticed before it is used. Files of other kinds that lie there are no
part of it, and ``engines.json`` is for its user to edit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lavila_fast.config import ModelConfig, NarratorConfig, from_dict, to_dict
from lavila_fast.errors import BundleError, InputError
from lavila_fast.files import sha256, write_json

MANIFEST = "bundle.json"
FORMAT = 3  # 1 has no engines, parity, calibration, native; 2 has no checkpoints
WAY_OUT = "copy the bundle to a folder of yours"  # where it cannot be written
PLAN = "engines.json"  # sizes to build engines for: read with checks of its own, never hashed
# What exports and reports write; a vocabulary may have any name, and a file that is named already stays.
OURS = (
    "*.onnx",
    "*.data",
    "*.safetensors",
    "*tokenizer.json",
    "*_ranges.json",
    "*_sensitivity.json",
    "*_sensitivity.md",
    "MODEL_CARD.md",
    "parity.json",
    "parity.html",
)
REPORTS = ("parity.json", "parity.html")  # which join a bundle that was written before
_LARGEST_MANIFEST = 4 << 20
_LARGEST_FILE = 32 << 30  # three times the largest model's in float32
USED = ("*.onnx", "*.data", "*.safetensors")  # what engines read: unlisted, nothing would vouch for it
_LONGEST_CLIP = 3600.0  # seconds


@dataclass(frozen=True)
class Bundle:
    """What `bundle.json` says.

    Attributes:
        folder: Where it lies.
        name: Short name, e.g. ``nano``.
        models: Config of each model in it, by kind.
        clip_seconds: Length of the clips the narrator was made for, seconds.
        precision: Of each graph, e.g. ``{"encoder": "fp32", "decoder": "int8"}``.
        tokenizer: Tokenizer of each model, by kind; see `text.tokenizers.load_tokenizer`.
        target: What the graphs were built for.
        opset: ONNX operator set of the graphs.
        built_with: Versions of what built it.
        files: SHA-256 of every file, by name.
        note: One line for `models show`.
        engines: Engine → how far it was tried with these graphs, e.g. ``{"tensorrt": "never run"}``.
        parity: Summary of how faithful the graphs are to the PyTorch reference; empty if it was not checked.
        calibration: What static ranges were measured on; empty where there are none.
        native: Whether ``weights.safetensors`` is here, which native engines read.
        checkpoints: Digest of the weights that each model was made from, by kind; empty in older bundles.
    """

    folder: Path
    name: str
    models: dict[str, ModelConfig]
    clip_seconds: float
    precision: dict[str, str]
    tokenizer: dict[str, Any]
    target: str = "cpu"
    opset: int = 0
    built_with: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    note: str = ""
    engines: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    native: bool = False
    checkpoints: dict[str, str] = field(default_factory=dict)

    @property
    def narrator(self) -> NarratorConfig:
        """The narrator's sizes.

        Raises:
            BundleError: there is no narrator in this bundle.
        """
        config = self.models.get("narrator")
        if not isinstance(config, NarratorConfig):
            raise BundleError(
                f"{self.folder}: this bundle has no narrator; it holds {', '.join(self.models) or 'nothing'}"
            )
        return config

    def save(self) -> None:
        """Hash the bundle's files (see `OURS`) and write ``bundle.json``, whole or not at all.

        Raises:
            StorageError: the folder cannot be written.
        """
        paths = [path for path in sorted(self.folder.iterdir()) if path.is_file() and self._names(path)]
        # A plan in bundles made before is part of their fingerprint as it was, however it is edited.
        files = {path.name: self.files[PLAN] if path.name == PLAN else sha256(path) for path in paths}
        values = {k: v for k, v in asdict(self).items() if k not in ("folder", "models", "files")}
        values |= {"format": FORMAT, "models": {k: to_dict(v) for k, v in self.models.items()}, "files": files}
        write_json(self.folder / MANIFEST, values, WAY_OUT)

    def _names(self, path: Path) -> bool:
        """Whether a file is part of the bundle; of one that was written before, what it lists, and reports."""
        if self.files:
            return path.name in self.files or path.name in REPORTS
        told = {one.get("file") for one in self.tokenizer.values()}
        ours = any(fnmatchcase(path.name, pattern) for pattern in OURS) and not path.name.startswith(".")
        return path.name in told or ours

    def verify(self) -> None:
        """Compare every file with its hash, but for the plan of engines.

        Raises:
            BundleError: naming the first file that is missing or different, or that engines would read unlisted.
        """
        told = [one.get("file") for one in self.tokenizer.values()]
        for path in sorted(self.folder.iterdir()):
            used = path.name in told or any(fnmatchcase(path.name, pattern) for pattern in USED)
            if used and path.name not in self.files and not path.name.startswith("."):
                raise BundleError(
                    f"{path}: not among the files that {MANIFEST} lists, so nothing says what it is; move it away, or "
                    "export the bundle again"
                )
        for name, wanted in self.files.items():
            if name == PLAN:
                continue
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{path}: missing from the bundle; export or download it again")
            if path.stat().st_size > _LARGEST_FILE:
                raise BundleError(f"{path}: far larger than any model's file; export or download it again")
            if sha256(path) != wanted:
                raise BundleError(
                    f"{path}: not the file {MANIFEST} describes (hash differs); export or download it again"
                )


def _check_schema(bundle: Bundle) -> None:
    """Raise ValueError for the first value of ``bundle.json`` that has another type than it should."""
    for name in ("name", "target", "note"):
        if not isinstance(getattr(bundle, name), str):
            raise ValueError(f"{name} is not a text")
    for name in ("precision", "files", "built_with", "engines", "checkpoints"):
        if not _all_of(getattr(bundle, name), str):
            raise ValueError(f"{name} is not names with texts")
    if not _all_of(bundle.tokenizer, dict) or not all(
        isinstance(one.get(name, ""), str) for one in bundle.tokenizer.values() for name in ("file", "kind")
    ):
        raise ValueError("tokenizer is not a file and a kind for each model")
    if not isinstance(bundle.parity, dict) or not isinstance(bundle.calibration, dict):
        raise ValueError("parity and calibration are not names with values")
    if not isinstance(bundle.native, bool):
        raise ValueError("native is neither true nor false")
    if isinstance(bundle.opset, bool) or not isinstance(bundle.opset, int):
        raise ValueError("opset is not a whole number")
    seconds = bundle.clip_seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST_CLIP:
        raise ValueError(f"clip_seconds is not a number over 0 and at most {_LONGEST_CLIP:g}")


def _all_of(values: object, kind: type) -> bool:
    """Whether it is a dictionary of names with values of one type."""
    return isinstance(values, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in values.items())


def open_bundle(folder: Path, verify: bool = True) -> Bundle:
    """Read a bundle folder.

    Raises:
        BundleError: no or damaged ``bundle.json``, a newer format, or (with `verify`) altered files.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder}: no {MANIFEST} here, so this is not a bundle; see `lavila-fast models list`")
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise ValueError("it is far too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        number = values.pop("format")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"format {number}")
        if number > FORMAT:
            raise BundleError(f"{path}: format {number} is newer than this lavila-fast reads ({FORMAT}); upgrade it")
        values["models"] = {kind: from_dict(config) for kind, config in values["models"].items()}
        values["files"] = dict(values["files"])
        if any(Path(name).name != name for name in values["files"]):
            raise ValueError("a file name leaves the folder")
        bundle = Bundle(folder=folder, **values)
        _check_schema(bundle)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as error:
        raise BundleError(f"{path}: damaged ({error}); export or download the bundle again") from error
    if verify:
        bundle.verify()
    return bundle
