"""Types of options that commands share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


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
