"""Whether a value that somebody wrote is of the kind that a signature names: what ``--set`` is held against."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_PARTS = (tuple, list, collections.abc.Sequence)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a kind; whole numbers count as numbers with a point, and lists as tuples."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return isinstance(value, str | int) and value in parts
    if origin in _PARTS:
        return isinstance(value, (list, tuple)) and _each_fits(value, parts)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(fits(one, parts[1]) for one in value.values())
    if hint in (float, int):
        return not isinstance(value, bool) and isinstance(value, (int, float) if hint is float else int)
    return not isinstance(hint, type) or isinstance(value, hint)


def _each_fits(value: list[Any] | tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(fits(one, parts[0]) for one in value)
    if len(parts) == 1:
        return all(fits(one, parts[0]) for one in value)
    return len(value) == len(parts) and all(map(fits, value, parts))


def hints_of(what: Callable[..., Any]) -> dict[str, Any]:
    """The kinds that a function or dataclass asks for, by name; unknown ones are left out."""
    try:
        return typing.get_type_hints(what)
    except NameError:  # names that only a type checker imports
        return {}


def said(hint: Any) -> str:
    """A kind in words."""
    plain = {float: "a number", int: "a whole number", str: "a word", bool: "true or false", type(None): "none"}
    if hint in plain:
        return plain[hint]
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(said, parts))
    if origin is typing.Literal:
        return " or ".join(map(str, parts))
    if origin in _PARTS:
        many = "a list" if len(parts) != 2 or parts[1] is Ellipsis else "a pair"
        return f"{many} with {said(parts[0])} each" if parts else many
    return "names with a value each" if origin is collections.abc.Mapping else inspect.formatannotation(hint)
