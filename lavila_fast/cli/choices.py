"""Types of options that commands share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from lavila_fast.errors import InputError
from lavila_fast.remote.urls import is_url, local_of, shown_url


class LocalPath(click.Path):
    """A file or folder here; refused is what would be another one as a path: a URL, or no name at all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A path. InputError: it is a URL of something elsewhere, or has no name."""
        if value == "":  # as of a shell's variable that is not set; as a path it would be this folder
            raise InputError("a path without a name; name a file or a folder, such as ./")
        if is_url(value):
            local = local_of(value)
            if local is None:
                raise InputError(f"{shown_url(value)}: lies elsewhere; give a file or folder of this machine")
            value = local
        return super().convert(value, param, ctx)


PATH = LocalPath(path_type=Path)


class _Positive(click.IntRange):
    """From 1 to what a computer counts to; `click` says only the first in its help."""

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A whole number in the range, or a usage error."""
        found = super().convert(value, param, ctx)
        if found > sys.maxsize:
            self.fail(f"{found} is larger than anything can be counted.", param, ctx)
        return found


POSITIVE = _Positive()


class Number(click.FloatRange):
    """`click.FloatRange`, which for itself takes ``nan`` for a number in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A finite number in the range, or a usage error."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not a finite number.", param, ctx)
        return found


class LazyChoice(click.ParamType):  # type: ignore[type-arg]  # generic only in later versions of click
    """`click.Choice` over what `names` gives when it is asked, so that a row added later counts."""

    name = "choice"

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """One of the names, or a usage error that lists them."""
        return click.Choice(list(self._names())).convert(value, param, ctx)

    def get_metavar(self, *given: Any, **named: Any) -> str | None:
        """``[a|b|c]``; click 8.1 asks with the parameter, later ones with the context too."""
        return click.Choice(list(self._names())).get_metavar(*given, **named)
