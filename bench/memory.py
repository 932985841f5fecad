"""The most memory that narrating takes: run by `bench.run` as a process of its own, so that nothing else is counted.

python -m lavila_fast.bench.memory nano --batch 8 --samples 10
"""

from __future__ import annotations

import json
from typing import Any

import click

from lavila_fast.bench.run import Setting, Subject
from lavila_fast.bench.timing import peak_rss


@click.command()
@click.argument("model")
@click.option("--engine", default="auto", show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--samples", default=10, show_default=True)
@click.option("--tokens", type=int)
@click.option("--threads", type=int)
@click.option("--tokenizer")
def main(model: str, batch: int, **given: Any) -> None:
    """Open MODEL, narrate one batch of noise, print peak bytes as JSON."""
    setting = Setting(model, batches=(batch,), **given)
    subject = Subject(setting.open(), setting)
    opened = peak_rss()
    subject.write(batch, batch)
    click.echo(json.dumps({"open_bytes": opened, "peak_bytes": peak_rss()}))


if __name__ == "__main__":
    main()
