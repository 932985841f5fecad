"""What the name or path of a model stands for, and where the vocabulary that goes with a checkpoint lies.

Everything that opens a model asks here, so a name means the same to the narrator, the loaders and the export.

    find_model("nano")               # the bundle that comes with the package
    find_model("narrator-base")      # the checkpoint that `lavila-fast models pull` fetched
    find_model("runs/narrator.pth")  # a path stands for itself
    find_start("clip-vit-b-16")      # weights of others, for training to begin with
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from lavila_fast.download import cache_dir, is_there, user_cache
from lavila_fast.errors import InputError, ModelNotFoundError
from lavila_fast.presets import CHECKPOINTS, PRETRAINED, Checkpoint, Pretrained, hint
from lavila_fast.text import Kind, Tokenizer, load_tokenizer
from lavila_fast.text.tokenizer import holds_vocabulary

ASSETS = Path(__file__).resolve().parent / "assets"


def find_model(model: str | Path) -> Path:
    """The folder or weight file of a model.

    A string that names a shipped model is that model wherever one stands (``./nano`` is a folder there); for the rest
    what is there comes before names.

    Raises:
        ModelNotFoundError: neither a path nor a name, or the name of a checkpoint that was not fetched yet.
    """
    name, path = str(model), Path(model)
    shipped = ASSETS / name
    exists = os.path.exists(path)  # noqa: PTH110  # Path's raises where a name is too long
    if name and name == path.name and os.path.isdir(shipped) and (isinstance(model, str) or not exists):  # noqa: PTH112
        return shipped
    if exists:
        return path
    if name in PRETRAINED:
        raise ModelNotFoundError(f"{name}: what training begins with, no model; `lavila-fast models list` has models")
    row = CHECKPOINTS.get(name)
    if row is None or not row.url:
        raise ModelNotFoundError(f"{model}: no such file or folder, nor a model's name; {hint(name)}")
    return _pulled(row)


def find_start(source: str | Path) -> Path:
    """The folder or weight file that training begins with: a row of `PRETRAINED`, else as for `find_model`.

    A name comes before what is there, so that a recipe means the same wherever one stands (``./gpt2`` is a path).

    Raises:
        ModelNotFoundError: neither a path nor a name, or the name of something that was not fetched yet.
    """
    row = PRETRAINED.get(str(source))
    return _pulled(row) if row else find_model(source)


def _pulled(row: Checkpoint | Pretrained) -> Path:
    path = cache_dir() / row.relative
    if not is_there(path):
        raise ModelNotFoundError(f"{row.name}: not fetched yet ({path}); run: lavila-fast models pull {row.name}")
    return path


def find_vocabulary(checkpoint: Path, kind: str, context: int, given: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint: what was given, or beside it, or where `models pull` puts vocabularies.

    Args:
        checkpoint: The weight file; its own vocabulary is called as it is, with ``.tokenizer.json``.
        kind: ``gpt2``, ``clip`` or ``wordpiece``.
        context: Length that sentences are padded and cut to.
        given: A file or folder, the only place looked at.

    Raises:
        ModelNotFoundError: there is none anywhere.
        InputError: there is one, but it cannot be read.
    """
    which = cast(Kind, kind)
    own = checkpoint.with_name(checkpoint.stem + ".tokenizer.json")
    if given is not None or is_there(own):
        return load_tokenizer(own if given is None else given, which, context)
    wrong: InputError | None = None
    cache = user_cache()
    for folder in (checkpoint.parent, *((cache / "tokenizers" / kind,) if cache else ())):
        if holds_vocabulary(folder, which):
            try:
                return load_tokenizer(folder, which, context)
            except InputError as error:  # perhaps another model's: the next place may have the right one
                wrong = wrong or error
    raise wrong or ModelNotFoundError(
        f"{checkpoint}: no {kind} vocabulary beside it; give --tokenizer, a tokenizer.json or a folder with the "
        "published files, or fetch them: lavila-fast models pull NAME"
    )
