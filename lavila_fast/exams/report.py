"""The page of an evaluation: scores beside what others report, a plot, and clips to look at; one file, no scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from lavila_fast.errors import MissingExtraError
from lavila_fast.exams.examples import Example, Pictures, examples, names_of
from lavila_fast.exams.figures import NAMES
from lavila_fast.exams.result import Result, reasons_by_row
from lavila_fast.page import ACCENT, document, html_table, picture, svg
from lavila_fast.shown import many

_MOST_CLASSES = 30


def render(result: Result, pictures: Pictures) -> str:
    """The page.

    Args:
        result: What is shown.
        pictures: Frames of the clips that `examples` names, by id; those that are lacking are left out.
    """
    title = f"{result.model['name']} on {result.benchmark}, {result.protocol['name']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(result),
        "<h2>Scores</h2>",
        _scores(result),
        _odd(result),
        f'<div class="plots" style="max-width: 620px">{_plot(result)}</div>',
        _classes(result),
        _examples(result, pictures),
        _missing(result),
    ]
    return document(title, "\n".join(part for part in parts if part))


def _facts(result: Result) -> str:
    protocol, data = result.protocol, result.data
    views = (
        f", {protocol['clips']} clips × {protocol['crops']} crops" if protocol["clips"] * protocol["crops"] > 1 else ""
    )
    facts = {
        "model": ", ".join(f"{name} {value}" for name, value in result.model.items()),
        "protocol": f"{protocol['frames']} frames{views}; {_asked(result)}",
        "clips": f"{data['clips']:,} of {data['videos']}, {len(data['missing']):,} missing",
        "annotations": "; ".join(_file(name, facts) for name, facts in data["files"].items()),
        "notes": "; ".join(data["notes"]) or "none",
        "versions": ", ".join(f"{name} {number}" for name, number in result.about["versions"].items()),
        "measured": f"{result.about['date']}, in {result.about['seconds']:.0f} s",
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _asked(result: Result) -> str:
    protocol = result.protocol
    if result.benchmark == "narration":
        sampling = f"temperature {protocol['temperature']:g}, top-p {protocol['top_p']:g}, seed {protocol['seed']}"
        clips = "every clip" if protocol["every"] == 1 else f"one clip of every {protocol['every']:,}"
        return f"{clips}, {many(protocol['samples'], 'sentence')} each, {sampling}"
    if result.benchmark in ("ek100_mir", "ego_mcq"):
        return f"embeddings {'of unit length' if protocol['normalised'] else 'as the model gives them'}"
    joined = f"texts {protocol['template']}, views joined by {protocol['join']}"
    return f"{'from all of a video' if protocol['sparse'] else 'windows or segments'}, {joined}"


def _file(name: str, facts: Mapping[str, Any]) -> str:
    return f"{name}: {facts['rows']:,} rows{' (as published)' if facts.get('published') else ''}"


def shown(value: float) -> str:
    """A figure as tables have it."""
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _scores(result: Result) -> str:
    names = list(dict.fromkeys([*result.scores, *(name for one in result.published for name in one["figures"])]))
    heads = ["", *(_head(NAMES.get(name, name)) for name in names), "source"]
    own = ["<b>this model</b>", *(f"<b>{shown(result.scores.get(name, math.nan))}</b>" for name in names), "this run"]
    rows = [own]
    for one in result.published:
        frames = f", {one['frames']} frames" if one["frames"] else ""
        cells = [shown(one["figures"][name]) if name in one["figures"] else "" for name in names]
        source = "; ".join(filter(None, (one["source"], one["note"])))
        rows.append([escape(one["model"]) + frames, *cells, f"<span class=soft>{escape(source)}</span>"])
    return html_table(heads, rows, words=1)


def _head(name: str) -> str:
    """A short name stays on one line."""
    return escape(name.replace("-", "\N{NON-BREAKING HYPHEN}") if len(name) < 10 else name)


def _odd(result: Result) -> str:
    if not result.published:
        return ""
    lines = reasons_by_row(result)
    if not lines:
        other = [name for name, facts in result.data["files"].items() if not facts.get("published")]
        files = f"; whether {escape(' and '.join(other))} is what was published is not known here" if other else ""
        return f"<p>Asked as the published figures were{files}.</p>"
    return "<p>Not to be compared with published figures as they stand:</p><ul>{}</ul>".format(
        "".join(f"<li>{escape(line)}</li>" for line in lines)
    )


def _plot(result: Result) -> str:
    try:
        draw, height = _drawing(result)
        return svg(draw, "scores", height=height)
    except MissingExtraError as error:
        return f"<p class=soft>no plot: {escape(str(error))}</p>"


def _drawing(result: Result) -> tuple[Any, float]:
    """What draws on axes, and how high they are, in inches."""
    tables = result.tables
    if "questions" in tables or ("clips" in tables and "label" in tables["clips"]):
        known = {name: value for name, value in result.scores.items() if not math.isnan(value)}
        return _bars(known), 0.9 + 0.3 * len(known)
    of, column, name, what = next(one for one in _HISTOGRAMS if one[0] in tables)
    values = np.asarray(tables[of][column], np.float64)
    values = values[~np.isnan(values)]

    def draw(axes: Any) -> None:
        axes.hist(values, bins=30, range=(0, max(1, values.max(initial=0))), color=ACCENT)
        axes.set_title(f"{name} of {many(len(values), what)}")
        axes.set_ylabel("how many")
        axes.yaxis.get_major_locator().set_params(integer=True)

    return draw, 2.8


_HISTOGRAMS = (
    ("video_to_text", "ap", "AP", "clip"),
    ("classes", "ap", "AP", "row"),
    ("sentences", "cider", "CIDEr-D", "clip"),
)


def _bars(values: Mapping[str, float]) -> Any:
    def draw(axes: Any) -> None:
        bars = axes.barh([NAMES.get(name, name) for name in values], list(values.values()), color=ACCENT, height=0.6)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=3)
        axes.set_xlabel("%")
        axes.set_xlim(0, 105)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    return draw


def _classes(result: Result) -> str:
    """The classes that go worst and best."""
    rows = _class_rows(result)
    if len(rows) < 2:
        return ""
    rows.sort(key=lambda row: row[1])
    half = _MOST_CLASSES // 2
    chosen = rows if len(rows) <= _MOST_CLASSES else [*rows[:half], *rows[-half:]]
    cells = [[escape(name), f"{value:.1f}", f"{count:,}"] for name, value, count in chosen]
    return f"<h2>Classes that go worst and best</h2>{html_table(['class', '%', 'shown'], cells)}"


def _class_rows(result: Result) -> list[tuple[str, float, int]]:
    if table := result.tables.get("classes"):
        rows = zip(table["id"], table["ap"], table["videos"], strict=True)
        return [(str(name), 100 * ap, int(count)) for name, ap, count in rows if not math.isnan(ap)]
    table = result.tables.get("clips", {})
    if "label" not in table:
        return []
    label, told = np.asarray(table["label"]), np.asarray(table["told"])
    names = names_of(result)
    return [
        (
            names[i] if i < len(names) else f"class {i}",
            float(100 * (told[label == i] == i).mean()),
            int((label == i).sum()),
        )
        for i in np.unique(label).tolist()
    ]


def _examples(result: Result, pictures: Pictures) -> str:
    found = examples(result)
    if not found:
        return ""
    parts = ["<h2>Clips to look at</h2>"]
    for good, heading in ((False, "What went worst, or is mistaken most"), (True, "What went best")):
        some = [one for one in found if one.good == good]
        parts += [f"<h3>{heading}</h3>", *(_example(one, pictures) for one in some)] if some else []
    return "\n".join(parts)


def _example(example: Example, pictures: Pictures) -> str:
    groups = []
    for clip in example.clips:
        images = "".join(f'<img alt="" src="{_small(frame)}">' for frame in pictures.get(clip, ()))
        groups.append(f"<div>{images}<div class=soft>{escape(clip)}</div></div>")
    rows = "".join(
        f"<tr><td class=soft>{escape(what)}</td><td>{escape(text)}</td></tr>" for what, text in example.lines
    )
    return f'<div class="example">{"".join(groups)}<table>{rows}</table></div>'


def _small(frame: Any) -> str:
    try:
        return picture(frame)
    except ModuleNotFoundError:  # Pillow comes with matplotlib
        return ""


def _missing(result: Result) -> str:
    missing = result.data["missing"]
    if not missing:
        return ""
    rows = [[escape(name), escape(why)] for name, why in list(missing.items())[:100]]
    return f"<h2>Missing clips</h2>{html_table(['clip', 'why'], rows, numeric=2)}"
