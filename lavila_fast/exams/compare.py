"""Two evaluations row by row: what one has more than the other, and how sure that is.

Rows that both were asked are paired by their ids. Figures are computed again from rows drawn with replacement, the same
ones for both, and the middle 95% of the differences is the interval (paired bootstrap; Efron 1979), always from the
same draws. Tables are drawn independently of each other, so of a retrieval's figure clips vary as well as sentences.

Rows of Charades-Ego are classes: its interval is over classes, not over videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError
from lavila_fast.exams.figures import FIGURES, NAMES, Tables, drawn
from lavila_fast.exams.result import Result

_DRAWS, _LEVEL = 1000, 0.95
_SAME = ("frames", "stride", "clips", "crops", "sparse", "template", "every", "samples", "normalised")
_TRUTH = ("label", "reference", "type")


@dataclass(frozen=True)
class Difference:
    """Of one figure.

    Attributes:
        name: Of the figure.
        first: In the first result, over what both have.
        second: In the second.
        change: Second less first.
        low: Lower end of the interval of `change`.
        high: Its upper end.
    """

    name: str
    first: float
    second: float
    change: float
    low: float
    high: float

    def __str__(self) -> str:
        """A line for people."""
        sure = "" if self.low <= 0 <= self.high else "  *"
        return (
            f"{NAMES.get(self.name, self.name):32}{self.first:9.2f}{self.second:9.2f}{self.change:+9.2f}"
            f"  [{self.low:+.2f}, {self.high:+.2f}]{sure}"
        )


@dataclass(frozen=True)
class Comparison:
    """Of two results.

    Attributes:
        benchmark: Of both.
        rows: Of each table, how many both have.
        differences: Of each figure.
        notes: What else is different about them.
    """

    benchmark: str
    rows: dict[str, int]
    differences: list[Difference]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def compare(first: Result, second: Result, draws: int = _DRAWS) -> Comparison:
    """Compare two results of one benchmark.

    Args:
        first: What is compared with, e.g. of float32.
        second: What is compared, e.g. of INT8.
        draws: Of the bootstrap.

    Raises:
        InputError: they are of different benchmarks, have nothing in common, or disagree about what is right.
    """
    if first.benchmark != second.benchmark:
        raise InputError(f"results of {first.benchmark} and of {second.benchmark} cannot be compared; give two of one")
    if set(first.tables) != set(second.tables) or first.benchmark not in FIGURES:
        raise InputError(f"the results of {first.benchmark} hold different tables; evaluate both again")
    both = [_paired(first.tables[name], second.tables[name], name) for name in first.tables]
    one: Tables = dict(zip(first.tables, (pair[0] for pair in both), strict=True))
    other: Tables = dict(zip(first.tables, (pair[1] for pair in both), strict=True))
    counts = {name: len(table["id"]) for name, table in one.items()}
    figures = FIGURES[first.benchmark]
    try:
        plain = figures(one), figures(other)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"the tables of one result are not those of {first.benchmark} ({error})") from error
    spread = _spread(first.benchmark, one, other, counts, draws)
    names = [name for name in plain[0] if name in plain[1] and not math.isnan(plain[0][name] + plain[1][name])]
    found = [Difference(n, plain[0][n], plain[1][n], plain[1][n] - plain[0][n], *_middle(spread[n])) for n in names]
    return Comparison(first.benchmark, counts, found, _notes(first, second, counts))


def _paired(mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    places = {one: i for i, one in enumerate(theirs["id"])}
    common = [(i, places[one]) for i, one in enumerate(mine["id"]) if one in places]
    if not common:
        raise InputError(f"the results have no row of {name} in common; evaluate both on the same clips")
    own, other = (np.array(one) for one in zip(*common, strict=True))
    pair = [
        {column: np.asarray(values)[rows] for column, values in table.items()}
        for table, rows in ((mine, own), (theirs, other))
    ]
    for column in _TRUTH:
        if column in pair[0] and not np.array_equal(pair[0][column], pair[1][column]):
            raise InputError(f"the results disagree about the {column}s of {name}; evaluate both with one annotation")
    return pair[0], pair[1]


def _spread(
    benchmark: str, one: Tables, other: Tables, counts: Mapping[str, int], draws: int
) -> dict[str, list[float]]:
    random = np.random.Generator(np.random.Philox(key=11))
    spread: dict[str, list[float]] = {}
    light = [_numbers(tables) for tables in (one, other)]
    for _ in range(draws):
        rows = {name: random.integers(count, size=count) for name, count in counts.items()}
        figures = [FIGURES[benchmark](drawn(tables, rows)) for tables in light]
        for name, value in figures[0].items():
            spread.setdefault(name, []).append(figures[1].get(name, math.nan) - value)
    return spread


def _numbers(tables: Tables) -> dict[str, dict[str, NDArray[Any]]]:
    """Without texts, which no figure needs."""
    return {
        name: {column: values for column, values in table.items() if np.asarray(values).dtype.kind not in "UO"}
        for name, table in tables.items()
    }


def _middle(values: list[float]) -> tuple[float, float]:
    found = np.asarray(values, np.float64)
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)) if len(found) else (math.nan, math.nan)
    return float(low), float(high)


def _notes(first: Result, second: Result, counts: Mapping[str, int]) -> list[str]:
    found = [
        f"{name}: {first.protocol.get(name)} in the first, {second.protocol.get(name)} in the second"
        for name in _SAME
        if first.protocol.get(name) != second.protocol.get(name)
    ]
    for name, count in counts.items():
        most = max(len(one.tables[name]["id"]) for one in (first, second))
        if count < most:
            found.append(f"only {count:,} of {most:,} {name.replace('_', ' ')} rows are in both")
    return found
