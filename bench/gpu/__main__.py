"""Everything this project claims about a GPU, checked and timed by one command, on one page.

    make gpu                                              # python3 -m lavila_fast.bench.gpu
    python3 -m lavila_fast.bench.gpu --part attention
    python3 -m lavila_fast.bench.gpu --rehearse -o /tmp/x  # toy sizes on a CPU: that the code runs, no figures

It needs PyTorch, Triton and what they bring, nothing of ours installed: a bare copy of the repository will do. Each
part runs in a process of its own (a kernel that faults takes only that along) and writes its own JSON; a part whose
figures are of these sources and this GPU is not repeated, so the same command goes on where time ran out. The last
line is one JSON object; the exit code is 1 if a check failed or a part did.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from lavila_fast.bench.gpu.page import headline, page
from lavila_fast.bench.gpu.parts import PARTS
from lavila_fast.bench.timing import ROOT

SOURCES = ("kernels", "lavila_fast", "bench/gpu")


def fingerprint() -> str:
    """Of all sources that a figure depends on."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh") and "_build" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def gpu_name() -> str:
    """What PyTorch calls the GPU.

    Raises:
        click.ClickException: there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise click.ClickException("PyTorch sees no NVIDIA GPU here; --rehearse runs the same code on a CPU")
    return str(torch.cuda.get_device_name())


def run_part(name: str, rehearse: bool, timeout: float) -> dict[str, Any]:
    """One part in its own process: what it found, or why not."""
    began = time.monotonic()
    command = [sys.executable, "-m", "lavila_fast.bench.gpu.parts", name, *(["--rehearse"] if rehearse else [])]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    except subprocess.TimeoutExpired:
        found: dict[str, Any] = {"failed": f"took longer than {timeout:.0f} s"}
    else:
        last = (told.stdout.strip().splitlines() or [""])[-1]
        found = json.loads(last) if told.returncode == 0 else {"failed": (told.stderr or last).strip()[-800:]}
    found["took_s"] = round(time.monotonic() - began, 1)
    return found


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


@click.command()
@click.option("--part", "chosen", multiple=True, type=click.Choice(list(PARTS)), help="Only these (several times).")
@click.option("--again", is_flag=True, help="Repeat parts that are done.")
@click.option("--seconds", default=520.0, show_default=True, help="Begin no part that could end later than this.")
@click.option("--rehearse", is_flag=True, help="Toy sizes on a CPU.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder; default bench/results/NAME-OF-GPU.")
def main(chosen: tuple[str, ...], again: bool, seconds: float, rehearse: bool, output: Path | None) -> None:
    """Check and time everything on this machine's GPU."""
    gpu = "rehearsal on a CPU" if rehearse else gpu_name()
    folder = output or ROOT / "bench" / "results" / gpu.lower().replace("nvidia", "").strip().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    key, deadline = {"sources": fingerprint(), "gpu": gpu}, time.monotonic() + seconds

    def run(name: str) -> None:
        path, limit = folder / f"{name}.json", PARTS[name].seconds
        before = _read(path)
        if not again and before.get("key") == key and not before.get("failed"):
            click.echo(f"{name}: done before", err=True)
        elif time.monotonic() + limit > deadline:
            click.echo(f"{name}: no time left for it; run the same command again", err=True)
        else:
            found = run_part(name, rehearse, limit * 1.5)
            path.write_text(json.dumps({"part": name, "key": key, **found}, indent=1) + "\n")
            click.echo(f"{name}: {found['took_s']:.0f} s {found.get('failed', '')}".strip(), err=True)

    for _, names in groupby(chosen or PARTS, lambda name: PARTS[name].together or name):
        with ThreadPoolExecutor(1 if rehearse else 4) as pool:
            list(pool.map(run, names))
    results = {name: _read(folder / f"{name}.json") for name in PARTS if (folder / f"{name}.json").is_file()}
    (folder / "README.md").write_text(page(gpu, results))
    told = headline(results)
    click.echo((folder / "README.md").read_text())
    click.echo(json.dumps(told))
    sys.exit(0 if told["checks_failed"] == 0 and not told["parts_failed"] else 1)


if __name__ == "__main__":
    main()
