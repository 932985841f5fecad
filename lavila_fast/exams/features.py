"""What a model gave for clips, kept as it comes, so that a run that was broken off goes on and the next one re-uses it.

A folder holds parts, each written whole or not at all: ids of some clips and their values. Its name is a digest of all
that values depend on (model, engine, pictures), which `about.json` spells out; features of another model lie elsewhere.
Several runs may write to one folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError
from lavila_fast.files import replacing, warn, write_json

_DIGITS = 16
_TODO = "give another --features folder"
Values = NDArray[Any]


class FeatureStore:
    """The features of one model for one benchmark."""

    def __init__(self, root: Path, about: Mapping[str, Any]) -> None:
        """Open or make the folder for what `about` describes, and read what is there.

        Raises:
            StorageError: it cannot be written.
        """
        told = json.dumps(about, sort_keys=True, default=str)
        name = f"{about['benchmark']}-{hashlib.sha256(told.encode()).hexdigest()[:_DIGITS]}"
        self.folder = root / name
        self._found: dict[str, Values] = {}
        self._read: set[Path] = set()
        if not (self.folder / "about.json").is_file():
            write_json(self.folder / "about.json", dict(about), _TODO)
        self.look()

    def look(self) -> None:
        """Read what others have written since."""
        for path in sorted(set(self.folder.glob("*.npz")) - self._read):
            self._found |= _read(path)
            self._read.add(path)
        self._keep_one_form()

    def _keep_one_form(self) -> None:
        """Values of one model have one form; what has another than most was put there by somebody else."""
        forms = Counter(_form(one) for one in self._found.values())
        if len(forms) > 1:
            usual = forms.most_common(1)[0][0]
            warn(f"{self.folder}: {len(self._found) - forms[usual]} values of another form are not taken")
            self._found = {name: one for name, one in self._found.items() if _form(one) == usual}

    def __contains__(self, name: str) -> bool:
        """Whether a clip's values are there."""
        return name in self._found

    def __len__(self) -> int:
        """Of how many clips values are there."""
        return len(self._found)

    def add(self, values: Mapping[str, Values]) -> None:
        """Keep the values of some clips, on the disk when this returns.

        Raises:
            StorageError: they cannot be written.
            InputError: what the folder holds is of another form.
        """
        if not values:
            return
        if len({_form(one) for some in (self._found, values) for one in some.values()}) > 1:
            raise InputError(f"{self.folder}: holds values of another form than this model's; {_TODO}")
        digest = hashlib.sha256("\n".join(values).encode()).hexdigest()[:_DIGITS]
        out = io.BytesIO()
        np.savez(out, ids=np.array(list(values)), values=np.stack(list(values.values())))
        with replacing(self.folder / f"{digest}.npz", _TODO) as file:
            file.write(out.getbuffer())
        self._found |= values

    def take(self, names: Sequence[str]) -> Values:
        """The values of clips that are there, in this order, stacked."""
        return np.stack([self._found[name] for name in names])


def _form(values: Values) -> tuple[Any, ...]:
    return (*values.shape, values.dtype.kind)


def _read(path: Path) -> dict[str, Values]:
    try:
        with np.load(path, allow_pickle=False) as part:
            return dict(zip(part["ids"].tolist(), part["values"], strict=True))
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warn(f"{path}: damaged ({' '.join(str(error).split())}); its clips are looked at again")
        return {}
