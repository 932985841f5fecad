"""``lavila-fast embed``: windows of videos as vectors of a dual encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lavila_fast.cli.run_options import machinery, places
from lavila_fast.cli.running import perform

if TYPE_CHECKING:
    from lavila_fast.archive.work import Embedding
    from lavila_fast.dual_encoder import DualEncoder


def _formats() -> tuple[str, ...]:
    from lavila_fast.archive.journals.kinds import features

    return features().offered()


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1)
@places(_formats, required=True)
@machinery
def embed(inputs: tuple[str, ...], **given: Any) -> None:
    """Embed videos: a row a window, its vector in float16, with the times of the frames that were seen.

    PATH is a .parquet (pip install 'lavila-fast[parquet]'), an .npz or a .jsonl, or a folder for one a video. INPUTs,
    resuming, failures, records beside the output and exit codes are those of `lavila-fast narrate`. Model and settings
    stand in the file's metadata, and rows of two models never in one file.

    \b
    Examples:
      lavila-fast embed videos/ -o features.parquet
      lavila-fast embed film.mp4 -o features.npz --clip-seconds 4 --stride-seconds 1
    """  # noqa: D301
    from lavila_fast.archive.signals import at_once
    from lavila_fast.archive.work import Embedding

    def open_model() -> tuple[DualEncoder, Embedding]:
        model = open_dual(given, given["model"])
        return model, Embedding.of(model)

    with at_once():
        given["frame_times"] = True
        code = perform(inputs, given, Embedding(), open_model)
    click.get_current_context().exit(code)


def open_dual(given: dict[str, Any], source: str) -> DualEncoder:
    """The dual encoder that the options name."""
    from lavila_fast.dual_encoder import DualEncoder

    how = {name: given[name] for name in ("threads", "tokenizer", "engine", "precision", "decoder")}
    return DualEncoder.from_pretrained(source, **how)
