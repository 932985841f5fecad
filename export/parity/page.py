"""`parity.html`: one page that says whether an engine can be trusted, then shows why; nothing from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.export.parity import plots
from lavila_fast.export.parity.limits import POINTS, Section
from lavila_fast.export.parity.report import Report

_CSS = """
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
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 1rem; margin-top: 1rem; }
.plots svg { width: 100%; height: auto; background: var(--card); border-radius: 8px; padding: .5rem; }
.example { background: var(--card); border-radius: 8px; padding: .8rem; margin: .7rem 0; }
.example img { height: 88px; border-radius: 4px; margin: 0 4px 4px 0; }
.example td { border: 0; padding-bottom: 0; } .example table { width: auto; }
.scroll { overflow-x: auto; }
"""
_FIGURES = {
    "tokens": "next words compared",
    "kl": "KL divergence, nats a token",
    "kl_worst_token": "KL divergence of the worst token",
    "top1_agreement": "likeliest word (class) the same",
    "greedy_tokens_equal": "greedy sentences: tokens equal",
    "greedy_sentences_equal": "greedy sentences: wholly equal",
    "video_cosine_min": "clips: least cosine",
    "video_cosine_mean": "clips: mean cosine",
    "text_cosine_min": "sentences: least cosine",
    "text_cosine_mean": "sentences: mean cosine",
    "ranking_first_equal": "clip → sentence: the same first",
    "ranking_first_10_shared": "clip → sentence: shared among the first 10",
}
_QUALITY = {**POINTS, "verb_and_object": "verb and object", "cider": "CIDEr-D (0 to 10)"}
_QUALITY |= {"text_to_video_recall_at_1": "text to video, recall at 1"}
_QUALITY |= {"video_to_text_recall_at_1": "video to text, recall at 1"}


def render(report: Report) -> str:
    """The page.

    Raises:
        MissingExtraError: matplotlib, which draws the plots, is not installed.
    """
    title = f"Parity of {report.about['bundle']['name']}"
    body = "\n".join([_head(report, title), *(_section(report, i) for i in range(len(report.sections))), _foot()])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def number(value: float) -> str:
    """Four digits, as people write them."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _html_table(heads: list[str], rows: list[list[str]], numeric: int = 1) -> str:
    """A table; cells are HTML already, and from column `numeric` on they are numbers."""

    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' * (i >= numeric)}>{cell}</{tag}>" for i, cell in enumerate(cells))

    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _head(report: Report, title: str) -> str:
    clips = f"on {report.about['clips']['count']} clips"
    checks = sum(len(section.checks) for section in report.sections)
    line = {
        "pass": f"All {checks} limits hold {clips}.",
        "fail": f"{len(report.failures)} of {checks} limits do not hold {clips}.",
        "not run": "This machine cannot run the bundle; nothing was compared.",
    }[report.verdict]
    parts = [
        f'<div class="verdict"><span class="badge{"" if report.passed else " bad"}">{report.verdict.upper()}</span>'
        f"<div><h1>{escape(title)}</h1><div class=soft>{line}</div></div></div>",
        *(f'<p class="bad-text">{escape(failure)}</p>' for failure in report.failures),
        _facts_list(report),
    ]
    return "\n".join(parts)


def _facts_list(report: Report) -> str:
    about = report.about
    bundle, machine = about["bundle"], about["machine"]
    facts = {
        "bundle": f"{bundle['name']}, for {bundle['target']}, {bundle['bytes'] / 1e6:,.1f} MB",
        "precision": ", ".join(f"{graph} {what}" for graph, what in bundle["precision"].items()),
        "reference": "; ".join(f"{k.replace('_', ' ')}: {v}" for k, v in about["references"].items())
        or "PyTorch models, float32",
        "clips": f"{about['clips']['count']} · {about['clips']['source']}",
        "machine": f"{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}",
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "measured": f"{about['date']}, in {about['seconds']:.0f} s",
    }
    facts |= {f"{kind.replace('_', ' ')}": f"not compared: {why}" for kind, why in report.left_out.items()}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _section(report: Report, place: int) -> str:
    section = report.sections[place]
    parts = [f"<h2>{escape(section.title[0].upper() + section.title[1:])}</h2>", _checks(section)]
    if section.quality:
        parts += ["<h3>In the kitchen</h3>", _quality(section)]
    parts += ["<h3>Agreement</h3>", _figures(section), "<h3>Errors of each graph</h3>", _graphs(section)]
    parts.append(f'<div class="plots">{"".join(_plots(section, place))}</div>')
    if section.examples:
        parts += ["<h3>Clips to look at</h3>", *(_example(report, one) for one in section.examples)]
    return "\n".join(parts)


def _checks(section: Section) -> str:
    rows = [
        [
            escape(check.what),
            f"{number(check.found)}{escape(check.unit)}",
            f"{'≥' if check.least else '≤'} {check.limit:g}{escape(check.unit)}",
            '<span class="good">PASS</span>' if check.ok else '<span class="bad-text">FAIL</span>',
        ]
        for check in section.checks
    ]
    return _html_table(["what", "found", "limit", ""], rows)


def _quality(section: Section) -> str:
    rows = []
    for name, row in section.quality.items():
        scale, unit = (1, "") if name == "cider" else (100, " %")
        rows.append(
            [
                escape(_QUALITY.get(name, name.replace("_", " "))),
                *(f"{row[who] * scale:.2f}{unit}" for who in ("reference", "engine")),
                f"{row['lost_points']:+.2f}",
                f"{row['low']:+.2f} … {row['high']:+.2f}",
                f"{row['worse']} / {row['better']} of {row['of']}",
            ]
        )
    first = next(iter(section.quality.values()))
    note = (
        f"A point is 1 % of the best possible; of {first['of']} clips one is {100 / first['of']:.2f} points. "
        "What is below zero was gained. The interval is a paired bootstrap's."
    )
    heads = ["", "reference", "engine", "points lost", "95 % interval", "worse / better"]
    return f'{_html_table(heads, rows)}<p class="soft">{note}</p>'


def _figures(section: Section) -> str:
    rows = [[escape(_FIGURES.get(name, name)), number(value)] for name, value in section.figures.items()]
    return _html_table(["", "found"], rows)


def _graphs(section: Section) -> str:
    notes = {
        "decoder": "decoder, given the reference's keys and values",
        "narrator": "narrator: encoder and decoder together",
    }
    rows = [
        [escape(notes.get(name, name)), *(number(error[k]) for k in ("max", "mean", "relative", "relative_worst_clip"))]
        for name, error in section.graphs.items()
    ]
    return _html_table(["graph", "largest", "mean", "relative", "relative, worst clip"], rows)


def _plots(section: Section, place: int) -> Iterator[str]:
    if section.quality:
        yield plots.quality_bars(section, f"s{place}-quality")
    if section.kl_by_position:
        yield plots.kl_by_position(section.kl_by_position, f"s{place}-kl")
    for graph, error in section.graphs.items():
        yield plots.error_histogram(graph, error, f"s{place}-{graph}")
    if section.layers:
        yield plots.layer_errors(section.layers, f"s{place}-layers")


def _example(report: Report, example: Mapping[str, Any]) -> str:
    clip = example["clip"]
    frames = "".join(f'<img alt="" src="{_picture(frame)}">' for frame in report.pictures.get(clip, ()))
    same = example["reference"] == example["engine"]
    other = "bad-text" if not same else ""
    return (
        f'<div class="example">{frames}<table>'
        f"<tr><td class=soft>reference</td><td>{escape(example['reference'])}</td></tr>"
        f'<tr><td class=soft>engine</td><td class="{other}">{escape(example["engine"])}</td></tr></table>'
        f"<span class=soft>clip {clip}, {number(example['kl'])} nats a token</span></div>"
    )


def _picture(frame_HW3: NDArray[np.uint8]) -> str:
    """A small JPEG as a data URI."""
    from PIL import Image  # matplotlib brings it

    image = Image.fromarray(frame_HW3)
    image.thumbnail((160, 160))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _foot() -> str:
    return (
        "<h2>How to read this</h2><p>Reference and engine saw the same clips. <b>Relative error</b> is the length of "
        "the difference of all outputs over the length of the reference's; the outputs of decoder and narrator are the "
        "log-probabilities of all words. For the <b>next word</b>, both are fed the "
        "reference's greedy sentence word by word; the reference computes whole sequences without a cache, in "
        "float32. <b>KL</b> says how much is lost by taking the engine's probabilities for the reference's. "
        "Sentences are <b>greedy</b>: the likeliest word each time, so that one near tie can change the rest.</p>"
    )
