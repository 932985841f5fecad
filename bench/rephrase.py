"""The rephraser against a plain `generate` a sentence: sentences a second, with the same candidates, in one run.

    python -m lavila_fast.bench.rephrase --output bench/results/rephrase.json

A T5 of a real size with random weights, and sentences of random words as long as Ego4D's narrations with their prefix;
random weights rarely end a sentence, so every candidate is as long as real ones are. transformers 5 has plain beam
search only; that is what is compared, beam by beam, and it is the headline. The search in groups (the default of
`lavila-fast rephrase`) stands beside it, a sentence at a time and in batches. Seconds of the processor are told, too,
for a machine that others use. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lavila_fast.bench.timing import Piece, in_turns, machine, medians, stamp
from lavila_fast.errors import MissingExtraError
from lavila_fast.files import write_json
from lavila_fast.generate.options import Written
from lavila_fast.quant.layers import shared_copy
from lavila_fast.rephrase.options import Search
from lavila_fast.rephrase.seq2seq import search_batch, to_int8, token_batches

COMMAND_REPHRASE = "python -m lavila_fast.bench.rephrase"
SHAPES = {  # of Google's T5: width, of a head, of the MLP, layers, heads
    "small": (512, 64, 2048, 6, 8),
    "base": (768, 64, 3072, 12, 12),
    "large": (1024, 64, 4096, 24, 16),
}
VOCAB, PAD, END = 32128, 0, 1
BEAMS = 5
LENGTHS = (9, 22)  # tokens of a sentence with prefix and end


def random_t5(shape: str, vocab: int = VOCAB) -> Any:
    """A T5 with random weights whose scores are as far apart as a trained one's, so that no two candidates tie."""
    try:
        from transformers import T5Config, T5ForConditionalGeneration
    except ImportError as error:
        raise MissingExtraError("transformers", "rephrase") from error
    width, head, mlp, layers, heads = SHAPES[shape]
    sizes = {"d_model": width, "d_kv": head, "d_ff": mlp, "num_layers": layers, "num_heads": heads}
    torch.manual_seed(0)
    config = T5Config(vocab_size=vocab, decoder_start_token_id=PAD, tie_word_embeddings=False, **sizes)
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 3 / width**0.5)
    return model


def random_sentences(count: int, vocab: int = VOCAB) -> list[list[int]]:
    """Token ids, the end token last."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(*LENGTHS, endpoint=True, size=count)
    return [[*draw.integers(3, vocab, size=length - 1).tolist(), END] for length in lengths]


@torch.inference_mode()
def generated(model: Any, read: Sequence[Sequence[int]], search: Search) -> list[list[list[int]]]:
    """What `generate` says, a sentence at a time."""
    how = {"num_beams": search.beams, "num_return_sequences": search.samples, "max_length": search.max_tokens}
    return [
        model.generate(input_ids=torch.tensor([ids]), early_stopping=True, do_sample=False, **how).tolist()
        for ids in read
    ]


def ours(model: Any, read: Sequence[Sequence[int]], search: Search, batch_tokens: int) -> list[list[Written]]:
    """What `lavila-fast rephrase` finds; `batch_tokens` 1: a sentence at a time."""
    found: dict[int, list[Written]] = {}
    for batch in token_batches([len(ids) for ids in read], batch_tokens):
        found |= zip(batch, search_batch(model, [read[number] for number in batch], PAD, search), strict=True)
    return [found[number] for number in range(len(read))]


def same_share(theirs: list[list[list[int]]], mine: list[list[Written]]) -> float:
    """The share of candidates that both have, whatever their order."""
    pairs = list(zip(theirs, mine, strict=True))
    same = sum(len({_until_end(one) for one in a} & {_until_end(one.ids) for one in b}) for a, b in pairs)
    return same / sum(len(a) for a, _ in pairs)


def _until_end(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(ids[: list(ids).index(END) + 1] if END in ids else ids)


def measured(
    shape: str, count: int, tokens: int, batch_tokens: int, repeats: int, vocab: int = VOCAB
) -> dict[str, Any]:
    """Seconds and sentences a second of every way, and what the headline needs."""
    model, read = random_t5(shape, vocab), random_sentences(count, vocab)
    beams, groups = (Search(BEAMS, BEAMS, number, max_tokens=tokens) for number in (1, BEAMS))
    ways: dict[str, tuple[Any, ...]] = {
        "generate": (generated, model, beams),
        "beams": (ours, model, beams, batch_tokens),
        "beams, int8": (ours, to_int8(shared_copy(model)), beams, batch_tokens),
        "groups, a sentence at a time": (ours, model, groups, 1),
        "groups": (ours, model, groups, batch_tokens),
    }
    said: dict[str, Any] = {}
    busy: dict[str, list[float]] = {name: [] for name in ways}

    def run(name: str, read: Sequence[Sequence[int]]) -> None:
        way, of, *how = ways[name]
        began = time.process_time()
        said[name] = way(of, read, *how)
        busy[name].append(time.process_time() - began)

    pieces = {name: Piece(partial(run, name, read), repeats, partial(run, name, read[:2])) for name in ways}
    took = medians(in_turns(pieces, say=lambda line: click.echo(line, err=True)))
    cpu = medians({name: each[1:] for name, each in busy.items()})  # the first warms up
    rows = {
        name: {"s": round(s, 2), "cpu_s": round(cpu[name], 2), "sentences_per_s": round(count / s, 3)}
        for name, s in took.items()
    }
    alone = "groups, a sentence at a time"
    return {
        "what": f"T5-{shape} in shape, random weights; {count} sentences, {BEAMS} beams, {tokens} tokens; median",
        "rows": rows,
        "same_candidates": round(same_share(said["generate"], said["beams"]), 4),
        "rephrase_speedup": round(took["generate"] / took["beams"], 2),
        "rephrase_speedup_cpu_time": round(cpu["generate"] / cpu["beams"], 2),
        "rephrase_groups_speedup": round(took[alone] / took["groups"], 2),
        "rephrase_groups_speedup_cpu_time": round(cpu[alone] / cpu["groups"], 2),
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="small", show_default=True)
@click.option("--sentences", type=click.IntRange(2), default=16, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=12, show_default=True, help="Of a candidate.")
@click.option("--batch-tokens", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
def main(output: Path | None, shape: str, sentences: int, tokens: int, batch_tokens: int, repeats: int) -> None:
    """Measure the rephraser."""
    told = measured(shape, sentences, tokens, batch_tokens, repeats)
    about = machine()
    if output:
        write_json(output, {**told, "command": " ".join([COMMAND_REPHRASE, *sys.argv[1:]]), "machine": about})
    for name, row in told["rows"].items():
        click.echo(f"{name:32} {row['sentences_per_s']:8.2f} sentences/s")
    click.echo(stamp(about))
    click.echo(json.dumps({key: value for key, value in told.items() if isinstance(value, float)}))


if __name__ == "__main__":
    main()
