"""LaViLa (Zhao et al., CVPR 2023) made fast: narrate, retrieve and classify video from the same checkpoints.

The narrating road (`Narrator`, the command line) needs no torch; the PyTorch reference models come with the
`[torch]` extra.

    >>> from lavila_fast import Narrator
    >>> for narration in Narrator.from_pretrained("nano").narrate("kitchen.mp4"):
    ...     print(narration.start, narration.end, narration.text)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A bare checkout (no install) keeps export/, kernels/, train/ and bench/ beside this package; let them import as ours.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and str(_ROOT) not in __path__:
    __path__.append(str(_ROOT))

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lavila_fast.models.load import load_classifier, load_dual_encoder, load_narrator
    from lavila_fast.pipeline import Narrator
    from lavila_fast.records import Clip, Narration

_HOMES = {
    "Narrator": "lavila_fast.pipeline",
    "Clip": "lavila_fast.records",
    "Narration": "lavila_fast.records",
    "load_narrator": "lavila_fast.models.load",
    "load_dual_encoder": "lavila_fast.models.load",
    "load_classifier": "lavila_fast.models.load",
}
__all__ = ["Clip", "Narration", "Narrator", "__version__", "load_classifier", "load_dual_encoder", "load_narrator"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lavila_fast' has no attribute {name!r}")
