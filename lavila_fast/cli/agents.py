"""``lavila-fast mcp``: an index for agents, over the Model Context Protocol on standard input and output."""

from __future__ import annotations

from pathlib import Path

import click

from lavila_fast.cli.choices import PATH, POSITIVE


@click.command()
@click.argument("index", metavar="INDEX", type=PATH)
@click.option("--clips", metavar="DIR", type=PATH, help="Let agents cut clips, into this folder and nowhere else.")
@click.option("--model", help="Where the index's dual encoder is now.  [default: where it was]")
@click.option("--threads", type=POSITIVE, default=1, show_default=True, help="Threads of the model.")
def mcp(index: Path, clips: Path | None, model: str | None, threads: int) -> None:
    """Serve INDEX to agents: the tools search, moments, and with --clips cut.

    An agent's program starts this itself and talks to it through its standard input and output; in its settings, such
    as {"mcpServers": {"archive": {"command": "lavila-fast", "args": ["mcp", "archive.index"]}}}.
    """
    from lavila_fast.search.index import Index
    from lavila_fast.search.tools import serve

    opened = Index.open(index)
    if model:
        opened.encoder(model, threads)  # what is wrong with it is said before an agent asks
        opened.model = model
    serve(opened, clips, threads)
