"""`parity.html`: one page that says whether an engine can be trusted, then shows why; nothing from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from lavila_fast.exams.figures import NAMES
from lavila_fast.export.parity import plots
from lavila_fast.export.parity.limits import POINTS, Check, Section
from lavila_fast.export.parity.report import Report
from lavila_fast.export.parity.tasks import TaskScores
from lavila_fast.page import document, html_table, number, picture

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
    sections = (_section(report, i) for i in range(len(report.sections)))
    body = "\n".join([_head(report, title), *map(_task, report.tasks), *sections, _foot()])
    return document(title, body)


def _head(report: Report, title: str) -> str:
    clips = f"on {report.about['clips']['count']} clips"
    checks = sum(map(len, report.checks.values()))
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
    parts = [f"<h2>{escape(section.title[0].upper() + section.title[1:])}</h2>", _checks(section.checks)]
    if section.quality:
        parts += ["<h3>In the kitchen</h3>", _quality(section)]
    parts += ["<h3>Agreement</h3>", _figures(section), "<h3>Errors of each graph</h3>", _graphs(section)]
    parts.append(f'<div class="plots">{"".join(_plots(section, place))}</div>')
    if section.examples:
        parts += ["<h3>Clips to look at</h3>", *(_example(report, one) for one in section.examples)]
    return "\n".join(parts)


def _task(task: TaskScores) -> str:
    """A benchmark's scores, of reference and bundle."""
    found = task.comparison
    rows = [
        [
            escape(NAMES.get(one.name, one.name)),
            *(f"{value:.3f}" for value in (one.first, one.second)),
            f"{one.change:+.3f}",
            f"{one.low:+.3f} … {one.high:+.3f}",
        ]
        for one in found.differences
    ]
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.rows.items())
    note = f"{task.protocol}; {counts}, paired. The interval is a paired bootstrap's."
    notes = "".join(f"<p>{escape(line)}</p>" for line in found.notes)
    parts = [f"<h2>{escape(task.title)}</h2>", _checks(task.checks)]
    heads = ["", "reference", "bundle", "change", "95 % interval"]
    return "\n".join([*parts, html_table(heads, rows), f'<p class="soft">{escape(note)}</p>{notes}'])


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    rows = [
        [
            escape(check.what),
            f"{number(check.found)}{escape(check.unit)}",
            f"{'≥' if check.least else '≤'} {check.limit:g}{escape(check.unit)}",
            '<span class="good">PASS</span>' if check.ok else '<span class="bad-text">FAIL</span>',
        ]
        for check in checks
    ]
    return html_table(["what", "found", "limit", ""], rows)


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
    return f'{html_table(heads, rows)}<p class="soft">{note}</p>'


def _figures(section: Section) -> str:
    rows = [[escape(_FIGURES.get(name, name)), number(value)] for name, value in section.figures.items()]
    return html_table(["", "found"], rows)


def _graphs(section: Section) -> str:
    notes = {
        "decoder": "decoder, given the reference's keys and values",
        "narrator": "narrator: encoder and decoder together",
    }
    rows = [
        [escape(notes.get(name, name)), *(number(error[k]) for k in ("max", "mean", "relative", "relative_worst_clip"))]
        for name, error in section.graphs.items()
    ]
    return html_table(["graph", "largest", "mean", "relative", "relative, worst clip"], rows)


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
    frames = "".join(f'<img alt="" src="{picture(frame)}">' for frame in report.pictures.get(clip, ()))
    same = example["reference"] == example["engine"]
    other = "bad-text" if not same else ""
    return (
        f'<div class="example">{frames}<table>'
        f"<tr><td class=soft>reference</td><td>{escape(example['reference'])}</td></tr>"
        f'<tr><td class=soft>engine</td><td class="{other}">{escape(example["engine"])}</td></tr></table>'
        f"<span class=soft>clip {clip}, {number(example['kl'])} nats a token</span></div>"
    )


def _foot() -> str:
    return (
        "<h2>How to read this</h2><p>Reference and engine saw the same clips. <b>Relative error</b> is the length of "
        "the difference of all outputs over the length of the reference's; the outputs of decoder and narrator are the "
        "log-probabilities of all words. For the <b>next word</b>, both are fed the "
        "reference's greedy sentence word by word; the reference computes whole sequences without a cache, in "
        "float32. <b>KL</b> says how much is lost by taking the engine's probabilities for the reference's. "
        "Sentences are <b>greedy</b>: the likeliest word each time, so that one near tie can change the rest.</p>"
    )
