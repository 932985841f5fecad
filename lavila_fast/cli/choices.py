"""An option's choices read from a table when they are asked for, so that a row added later counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click


class LazyChoice(click.ParamType):  # type: ignore[type-arg]  # generic only in later versions of click
    """`click.Choice` over what `names` gives at that moment."""

    name = "choice"

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """One of the names, or a usage error that lists them."""
        return click.Choice(list(self._names())).convert(value, param, ctx)

    def get_metavar(self, *given: Any, **named: Any) -> str | None:
        """``[a|b|c]``; click 8.1 asks with the parameter, later ones with the context too."""
        return click.Choice(list(self._names())).get_metavar(*given, **named)
