"""An index at size: how long it takes to make, what memory that needs, how fast it answers, and how exactly.

    python -m lavila_fast.bench.search_bench --windows 1000000 --output bench/results/search.json

Vectors of 256 numbers in clusters, as windows of films are: a cluster for every 500, cosines of about 0.6 within one;
queries lie as far from the windows as sentences do. Each size has a process of its own, so that its peak memory is its
own. All vectors compared (`exact`) and the index of vectors (IVF-SQ, refined) are asked the same over the same table;
recall@10 is against NumPy's comparison of all. `again` is what it costs to add a film of 1,000 windows to the whole.
The last line is one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.errors import LavilaError
from lavila_fast.files import write_json
from lavila_fast.search import store as store_module
from lavila_fast.search.store import BATCH, Store, Window

COMMAND = "python -m lavila_fast.bench.search_bench"
DIM, CLUSTER, QUERIES, SECONDS = 256, 500, 200, 2.0
TAKEN = 200  # windows that a search looks at, to make moments of them
_WITHIN, _AWAY = 0.8, 1.5  # noise of a window and of a query, as long as what it is added to is 1
_WORDS = (
    *("picks", "puts", "cuts", "washes", "opens", "closes", "onion", "knife", "pan", "cup"),
    *("drawer", "water", "left", "right", "red", "green"),
)
_BLOCK = 1 << 14


def vectors(count: int, seed: int = 0) -> Iterator[F32]:
    """Blocks of unit vectors, the same for the same number of all."""
    random = np.random.Generator(np.random.Philox(key=seed))
    centres = _unit(random.standard_normal((max(count // CLUSTER, 1), DIM), np.float32))
    for at in range(0, count, _BLOCK):
        rows = np.arange(at, min(at + _BLOCK, count))
        noise = random.standard_normal((len(rows), DIM), np.float32) * (_WITHIN / DIM**0.5)
        yield _unit(centres[rows // CLUSTER % len(centres)] + noise)


def _unit(rows: F32) -> F32:
    found: F32 = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def windows(count: int, name: str = "film") -> Iterator[Window]:
    """Rows of films of an hour each."""
    number, random = 0, np.random.Generator(np.random.Philox(key=1))
    for block in vectors(count):
        words = random.integers(0, len(_WORDS), (len(block), 6))
        for vector, said in zip(block, words, strict=True):
            film, start = divmod(number, 1800)
            text = "#C C " + " ".join(_WORDS[word] for word in said)
            video = f"{name}{film:06}.mp4"
            yield Window(
                video, f"{film:032x}", f"/archive/{video}", 2.0 * start, 2.0 * start + SECONDS, text, 5.0, vector=vector
            )
            number += 1


def questions(count: int) -> tuple[F32, list[set[int]]]:
    """Queries (Q, E), and the ten windows that fit each best, by their numbers."""
    random = np.random.Generator(np.random.Philox(key=2))
    chosen = set(random.integers(0, count, QUERIES).tolist())
    queries, number = [], 0
    for block in vectors(count):
        queries += [block[i] for i in range(len(block)) if number + i in chosen]
        number += len(block)
    away = random.standard_normal((len(queries), DIM), np.float32) * (_AWAY / DIM**0.5)
    asked = _unit(np.stack(queries) + away)
    best_score = np.full((len(asked), 10), -2.0, np.float32)
    best_place = np.zeros((len(asked), 10), np.int64)
    number = 0
    for block in vectors(count):
        halves = block.astype(np.float16).astype(np.float32)
        scores = np.concatenate([best_score, asked @ halves.T], 1)
        places = np.concatenate([best_place, np.tile(np.arange(number, number + len(block)), (len(asked), 1))], 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        best_score, best_place = np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)
        number += len(block)
    return asked, [set(row) for row in best_place.tolist()]


def _mib(name: str = "VmHWM") -> float:
    """Memory of this process: the most since `_forget`, or ``VmRSS``, now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return round(int(line.split()[1]) / 1024, 1)
    return float("nan")


def _forget() -> None:
    """Begin to count the most memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def phase(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a piece of work, of processor time too, and memory before it and at most."""
    _forget()
    before = _mib("VmRSS")
    began, cpu = time.perf_counter(), time.process_time()
    work()
    took, spent = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": round(took, 3), "cpu_seconds": round(spent, 3), "before_mib": before, "peak_mib": _mib()}


def _fill(store: Store, rows: Iterator[Window]) -> None:
    some: list[Window] = []
    for one in rows:
        some.append(one)
        if len(some) == BATCH:
            store.add(some)
            some = []
    if some:
        store.add(some)


def _add_and_settle(store: Store, rows: Sequence[Window]) -> None:
    store.add(rows)
    store.settle()


def _number(window: Window) -> int:
    film = int(window.video[4:10])
    return film * 1800 + round(window.start / 2)


def asked(store: Store, queries: F32, right: Sequence[set[int]], exact: bool) -> dict[str, float]:
    """Percentiles of the milliseconds that an answer takes, warm, and how many of the right ten it holds."""
    times, shared = [], 0
    for query in queries[:20]:
        store.nearest(query, TAKEN, exact=exact)
    for query, best in zip(queries, right, strict=True):
        began = time.perf_counter()
        hits = store.nearest(query, TAKEN, exact=exact)[:10]
        times.append(1000 * (time.perf_counter() - began))
        shared += len({_number(hit.window) for hit in hits} & best)
    p50, p99 = np.percentile(times, (50, 99))
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2), "recall_at_10": shared / (10 * len(right))}


def measured(count: int, always_index: bool) -> dict[str, Any]:
    """A row, in this process."""
    if always_index:
        store_module.LARGE = min(store_module.LARGE, count)
    row: dict[str, Any] = {"windows": count, "dim": DIM, "start_mib": _mib()}
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder), DIM)
        row["add"] = phase(lambda: _fill(store, windows(count)))
        row["settle"] = phase(store.settle)
        row["compact"] = phase(store.compact)
        store.settle()
        queries, right = questions(count)
        ways = {"exact": True, "index": False} if count >= store_module.LARGE else {"exact": True}
        row |= {name: asked(store, queries, right, exact) for name, exact in ways.items()}
        row["words"] = _worded(store)
        more = list(windows(1000, "more"))
        row["again"] = phase(partial(_add_and_settle, store, more))
        row["disk_mib"] = round(sum(one.stat().st_size for one in Path(folder).rglob("*") if one.is_file()) / 2**20, 1)
    return row


def _worded(store: Store) -> dict[str, float]:
    """Of words."""
    times = []
    for first, second in zip(_WORDS[::2], _WORDS[1::2], strict=True):
        began = time.perf_counter()
        store.worded(f"{first} {second}", 10)
        times.append(1000 * (time.perf_counter() - began))
    return {"p50_ms": round(float(np.median(times)), 2), "most_ms": round(max(times), 2)}


def measured_apart(count: int, always_index: bool) -> dict[str, Any]:
    """A row, in a process of its own.

    Raises:
        LavilaError: it failed.
    """
    words = [sys.executable, "-m", "lavila_fast.bench.search_bench", "--own", str(count)]
    told = subprocess.run([*words, *(["--always-index"] if always_index else [])], capture_output=True, text=True)
    if told.returncode:
        raise LavilaError(f"{count} windows: {told.stderr.strip().splitlines()[-1] if told.stderr else 'no word'}")
    row: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return row


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last line."""
    last = rows[-1]
    way = last.get("index", last["exact"])
    return {
        "search_windows": last["windows"],
        "search_build_s": round(last["add"]["seconds"] + last["settle"]["seconds"], 1),
        "search_build_mib": max(last["add"]["peak_mib"], last["settle"]["peak_mib"]),
        **{f"search_{name}": value for name, value in way.items()},
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--windows", "sizes", multiple=True, type=int, default=(10_000, 100_000), show_default=True)
@click.option("--always-index", is_flag=True, help="Make an index of vectors where comparing all is the rule, too.")
@click.option("--own", type=int, hidden=True)
def main(output: Path | None, sizes: tuple[int, ...], always_index: bool, own: int | None) -> None:
    """Make tables of several sizes and ask them."""
    if own is not None:
        click.echo(json.dumps(measured(own, always_index)))
        return
    rows = []
    for count in sizes:
        rows.append(measured_apart(count, always_index))
        click.echo(json.dumps(rows[-1]))
    command = " ".join([COMMAND, *sys.argv[1:]])
    result: dict[str, Any] = {"command": command, "machine": machine(), "rows": rows}
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps(figures(rows)))


if __name__ == "__main__":
    main()
