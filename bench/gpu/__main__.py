"""Everything this project claims about a GPU, checked and timed by one command, on one page.

    make gpu                                              # python3 -m lavila_fast.bench.gpu
    python3 -m lavila_fast.bench.gpu --part attention
    python3 -m lavila_fast.bench.gpu --rehearse -o /tmp/x  # toy sizes on a CPU: that the code runs, no figures

It needs PyTorch, Triton and what they bring, nothing of ours installed: a bare copy of the repository will do. Each
part runs in a process of its own (a kernel that faults takes only that along) and has its own JSON file; one that fails
or is cut off leaves the rows it had. A part whose figures are of these sources, versions and GPU is not repeated, so
the same command goes on where time ran out. The last line is one JSON object; the exit code is 1 if a check failed or a
part did. Training comes last, being the longest. It goes on within a part, too, and may be had alone:

    python3 -m lavila_fast.bench.gpu --part training --part training_large   # and bench/results/gpu_training.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import click

from lavila_fast.bench.gpu.page import gpu_headline, gpu_page
from lavila_fast.bench.gpu.parts import BENCH_PARTS
from lavila_fast.bench.gpu.ratios import speedups
from lavila_fast.bench.gpu.training_page import write_training
from lavila_fast.bench.timing import ROOT
from lavila_fast.files import write_json

SOURCES = ("kernels", "lavila_fast", "bench/gpu", "bench/flops.py", "bench/peers.py", "bench/uncached.py")
VERSIONS = ("torch", "triton", "transformers")
SHORTEST = 60.0  # seconds for which a part that resumes is begun


def fingerprint(more: tuple[str, ...] = ()) -> str:
    """Of all sources that a figure depends on, `more` of them, and the versions of what they are built on."""
    found = {name: version(name) for name in VERSIONS if find_spec(name)}
    digest = hashlib.sha256(str(found).encode())
    for path in sorted(path for name in (*SOURCES, *more) for path in (ROOT / name, *(ROOT / name).rglob("*"))):
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


def run_part(name: str, rehearse: bool, timeout: float, before: Path | None = None) -> dict[str, Any]:
    """One part in its own process: what it found, all of it or until it failed or its time was over, and why.

    Args:
        name: Of the part.
        rehearse: See `main`.
        timeout: Seconds after which it is ended.
        before: What it found an earlier time, to which it adds.
    """
    began, failed = time.monotonic(), ""
    command = [sys.executable, "-m", "lavila_fast.bench.gpu.parts", name, f"--seconds={timeout - 5}"]
    command += [*(["--rehearse"] if rehearse else []), *([f"--before={before.resolve()}"] if before else [])]
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
        # A session of its own: what it starts, such as compilers, ends with it.
        part = subprocess.Popen(command, stdout=out, stderr=errors, cwd=ROOT, start_new_session=True)
        try:
            if part.wait(timeout):
                failed = _told(errors).strip()[-800:] or f"exit code {part.returncode}"
        except subprocess.TimeoutExpired:
            failed = f"took longer than {timeout:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.pid, signal.SIGKILL)
            part.wait()
        found = collected(_told(out))
    if before:  # checks are made anew, over all rows
        found["rows"] = [row for row in _read_part(before)["rows"] if "check" not in row] + found["rows"]
    found |= {"failed": failed} if failed else {}
    return {**found, "speedups": speedups(found["rows"]), "took_s": round(time.monotonic() - began, 1)}


def _told(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def collected(told: str) -> dict[str, Any]:
    """Rows and facts of a part from what it printed; other lines, and one cut off, are passed over."""
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"rows": rows}
    for line in told.splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line) if line.startswith("{") else {}
            rows += [said.pop("row")] if "row" in said else []
            found |= said
    return found


def _read_part(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


@click.command()
@click.option(
    "--part", "chosen", multiple=True, type=click.Choice(list(BENCH_PARTS)), help="Only these (several times)."
)
@click.option("--again", is_flag=True, help="Repeat parts that are done.")
@click.option("--seconds", default=525.0, show_default=True, help="End by then; a part cut off leaves its rows.")
@click.option("--rehearse", is_flag=True, help="Toy sizes on a CPU.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder; default bench/results/NAME-OF-GPU.")
def main(chosen: tuple[str, ...], again: bool, seconds: float, rehearse: bool, output: Path | None) -> None:
    """Check and time everything on this machine's GPU."""
    deadline, gpu = time.monotonic() + seconds, "rehearsal on a CPU" if rehearse else gpu_name()
    base = output or ROOT / ("build" if rehearse else "bench/results")
    folder = output or base / folder_name(gpu)
    folder.mkdir(parents=True, exist_ok=True)
    keys = {name: {"sources": fingerprint(part.sources), "gpu": gpu} for name, part in BENCH_PARTS.items()}

    def run(name: str) -> None:
        path, part, left = folder / f"{name}.json", BENCH_PARTS[name], deadline - time.monotonic()
        before = {} if again else _read_part(path)
        known = before.get("key") == keys[name]
        if known and not before.get("failed") and not before.get("left"):
            click.echo(f"{name}: done before", err=True)
        elif left < (SHORTEST if part.resumes else part.seconds / 2):
            click.echo(f"{name}: no time left for it; run the same command again", err=True)
        else:
            timeout = min((6 if rehearse else 2) * part.seconds, left)
            found = run_part(name, rehearse, timeout, path if known and part.resumes else None)
            write_json(path, {"part": name, "key": keys[name], **found})
            click.echo(f"{name}: {found['took_s']:.0f} s {found.get('failed', '')}".strip(), err=True)

    for _, names in groupby(chosen or BENCH_PARTS, lambda name: BENCH_PARTS[name].together or name):
        with ThreadPoolExecutor(1 if rehearse else 4) as pool:
            list(pool.map(run, names))
    parts = {name: _read_part(folder / f"{name}.json") for name in BENCH_PARTS}
    results = {
        n: {**one, "stale": one["key"] != keys[n]} for n, one in parts.items() if one and one["key"]["gpu"] == gpu
    }
    (folder / "README.md").write_text(gpu_page(gpu, results, not rehearse))
    write_training(base, gpu, results, not rehearse)
    unfinished = [name for name in BENCH_PARTS if name not in results or results[name].get("left")]
    told = gpu_headline(results, not rehearse) | {"parts_left": unfinished}
    click.echo((folder / "README.md").read_text())
    click.echo(json.dumps(told))
    sys.exit(0 if told["checks_failed"] == 0 and not told["parts_failed"] else 1)


def folder_name(gpu: str) -> str:
    """Of a GPU's results: ``NVIDIA H200`` → ``h200``."""
    return gpu.lower().replace("nvidia", "").strip().replace(" ", "-")


if __name__ == "__main__":
    main()
