"""Evaluation's figures: dual encoders on the native engine, `eval` against the bare engine, the rephraser.

    python -m lavila_fast.bench.evaluation --output bench/results/evaluation.json
    python -m lavila_fast.bench.evaluation --only eval

A section is a row of `SECTIONS`. With ``--output``, sections that are not run again keep what the file has, or else
what `bench.dual` and `bench.rephrase` have left beside it. The last line is one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lavila_fast.bench.dual import measure
from lavila_fast.bench.eval_engine import eval_section
from lavila_fast.bench.rephrase import measured
from lavila_fast.bench.sections import (
    PREPARED_FILES,
    FromFile,
    Sections,
    earlier_sections,
    measure_sections,
    sections_beside,
)
from lavila_fast.bench.timing import machine, stamp

COMMAND_EVALUATION = "python -m lavila_fast.bench.evaluation"
HEADLINES = {  # key of the last line → section
    "embed_int8_vs_openvino_int8": "dual",
    "text_sentences_per_s": "dual",
    "eval_vs_bare_engine": "eval",
    f"{PREPARED_FILES}eval_vs_bare_engine": "eval",
    "rephrase_speedup": "rephrase",
}


def dual_section() -> dict[str, Any]:
    """Embeddings of videos and texts, on one thread and in its own time, as `bench.dual` tells it."""
    return flat_dual(measure(threads=1, repeats=7, peers=True, clock="cpu"))


def flat_dual(told: dict[str, Any]) -> dict[str, Any]:
    """What `bench.dual` found, its ratios beside what they are about."""
    what = f"{told['model']}; {told['threads']} thread, seconds of the {told['clock']}; texts of 77 tokens"
    return {"what": what, **{name: value for name, value in told.items() if name != "ratios"}, **told["ratios"]}


def rephrase_section() -> dict[str, Any]:
    """The rephraser against `generate`, as `bench.rephrase` tells it by itself."""
    return measured("small", 16, 12, 1024, 3)


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "dual": dual_section,
    "eval": eval_section,
    "rephrase": rephrase_section,
}
_FILES: dict[str, FromFile] = {
    "dual": ("dual.json", flat_dual),
    "rephrase": ("rephrase.json", dict),
}


def known_sections(output: Path | None) -> Sections:
    """Sections of an earlier time: those of the file, else of the files beside it."""
    return {**sections_beside(output, _FILES), **earlier_sections(output)}


def headline(sections: Sections) -> dict[str, Any]:
    """The last line: what its sections say, None where they were not run."""
    return {key: sections.get(section, {}).get(key) for key, section in HEADLINES.items()}


def lines(sections: Sections) -> list[str]:
    """What each section found, to read."""
    found = []
    for name, told in sections.items():
        found.append(f"{name}: {told['what']}")
        found += [f"  {key.replace('_', ' ')} {value}" for key, value in told.items() if isinstance(value, float)]
    if dual := sections.get("dual"):
        found.append(
            f"texts: {dual['text_sentences_per_s']:.1f} sentences of 77 tokens a second on {dual['threads']} thread, "
            f"{dual['text_share_of_int8_peak']:.0%} of INT8 products' peak of {dual['int8_peak_gflops']:.0f} GFLOP/s"
        )
    return found


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--only", help=f"Sections, with commas between; of {', '.join(SECTIONS)}.")
def main(output: Path | None, only: str | None) -> None:
    """Measure evaluation."""
    sections = measure_sections(SECTIONS, only, known_sections(output), COMMAND_EVALUATION, output)
    click.echo("\n".join([*lines(sections), stamp(machine())]))
    click.echo(json.dumps(headline(sections)))


if __name__ == "__main__":
    main()
