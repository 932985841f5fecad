"""LaViLa (Zhao et al., CVPR 2023) made fast: narrate, retrieve and classify video from the same checkpoints.

The main road (`Narrator`, `DualEncoder`, `Classifier`, the command line) needs no torch; the PyTorch reference models
come with the `[torch]` extra.

    >>> from lavila_fast import Narrator
    >>> for narration in Narrator.from_pretrained("nano").narrate("kitchen.mp4"):
    ...     print(narration.start, narration.end, narration.text)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# export/, kernels/, train/ and bench/ are links to the folders beside this package. Where a checkout has no links
# (Windows, by default), the folders themselves serve.
_FOLDER = Path(__file__).resolve().parent
if not (_FOLDER / "kernels").is_dir() and (_FOLDER.parent / "pyproject.toml").is_file():
    __path__.append(str(_FOLDER.parent))

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lavila_fast.classifier import Classifier
    from lavila_fast.dual_encoder import DualEncoder
    from lavila_fast.models.load import load_classifier, load_dual_encoder, load_narrator
    from lavila_fast.narrator import Narrator
    from lavila_fast.records import Clip, ClipEmbedding, ClipLogits, Narration

_HOMES = {
    "Narrator": "lavila_fast.narrator",
    "DualEncoder": "lavila_fast.dual_encoder",
    "Classifier": "lavila_fast.classifier",
    "Clip": "lavila_fast.records",
    "ClipEmbedding": "lavila_fast.records",
    "ClipLogits": "lavila_fast.records",
    "Narration": "lavila_fast.records",
    "load_narrator": "lavila_fast.models.load",
    "load_dual_encoder": "lavila_fast.models.load",
    "load_classifier": "lavila_fast.models.load",
}
__all__ = [
    "Classifier",
    "Clip",
    "ClipEmbedding",
    "ClipLogits",
    "DualEncoder",
    "Narration",
    "Narrator",
    "__version__",
    "load_classifier",
    "load_dual_encoder",
    "load_narrator",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lavila_fast' has no attribute {name!r}")
