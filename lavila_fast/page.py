"""Pages of one file, for reports: nothing from outside, no scripts, light or dark as the reader has it."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import MissingExtraError

CSS = """
:root { color-scheme: light dark; --bg: #fff; --ink: #1c2330; --soft: #5b6675; --line: #dfe3ea; --card: #f6f7f9;
  --accent: #2f6fb3; --second: #a9b4c4; --good: #1a7f45; --bad: #c22f2f; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171c; --ink: #e6e9ee; --soft: #9aa5b4; --line: #323945;
  --card: #1c2128; --accent: #6aa7e8; --second: #5d6a7d; --good: #4fc47f; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.55rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } p { margin: .4rem 0; max-width: 75ch; }
.verdict { display: flex; gap: 1rem; align-items: center; margin-bottom: 1rem; }
.badge { font-weight: 700; padding: .25rem .8rem; border-radius: 6px; color: var(--bg); background: var(--good); }
.badge.bad { background: var(--bad); } .soft { color: var(--soft); } .good { color: var(--good); }
.bad-text { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; } td.n, th.n { text-align: right; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .6rem 0 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 1rem; margin-top: 1rem; }
.plots svg { width: 100%; height: auto; background: var(--card); border-radius: 8px; padding: .5rem; }
.example { background: var(--card); border-radius: 8px; padding: .8rem; margin: .7rem 0; }
.example img { height: 88px; border-radius: 4px; margin: 0 4px 4px 0; }
.example td { border: 0; padding-bottom: 0; } .example table { width: auto; }
.scroll { overflow-x: auto; }
"""
# Stand-ins that become CSS variables of the page once the picture is drawn.
INK, FAINT, ACCENT, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
_COLOURS = {INK: "currentColor", FAINT: "var(--line)", ACCENT: "var(--accent)", SECOND: "var(--second)"}
_PLOT_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
    "legend.frameon": False,
}


BEGINS = "<!DOCTYPE html>"


def svg(draw: Any, name: str, width: float = 5.2, height: float = 2.6) -> str:
    """Draw on fresh axes and give the picture as an ``<svg>`` element."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    with mpl.rc_context({**_PLOT_STYLE, "svg.hashsalt": name}):
        figure = Figure((width, height), layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()[out.getvalue().index("<svg") :]
    for stand_in, colour in _COLOURS.items():
        text = re.sub(stand_in, colour, text, flags=re.IGNORECASE)
    text = re.sub(r"font: ([^;\"]*?)'sans-serif'[^;\"]*", r"font: \1inherit", text)
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)  # ids are the page's, not the picture's
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)


def document(title: str, body: str) -> str:
    """A whole page of a body that is HTML already."""
    return (
        f'{BEGINS}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def number(value: float) -> str:
    """Four digits, as people write them."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def html_table(heads: list[str], rows: list[list[str]], numeric: int = 1, words: int = 0) -> str:
    """A table; cells are HTML already, from column `numeric` on they are numbers, but for the last `words` columns."""
    numbers = range(numeric, len(heads) - words)

    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' * (i in numbers)}>{cell}</{tag}>" for i, cell in enumerate(cells))

    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def picture(frame_HW3: NDArray[np.uint8]) -> str:
    """A small JPEG as a data URI."""
    from PIL import Image  # matplotlib brings it

    image = Image.fromarray(frame_HW3)
    image.thumbnail((160, 160))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
