"""A film in object storage against the same film on the disk: whole runs in turns, and the bytes that were fetched.

    python -m lavila_fast.bench.remote --output bench/results/remote.json

The server is moto's, on this machine; before it stands a relay that holds back every request for `--delay` ms and
counts all bytes on their way back, headers too. Each run begins with nothing kept. The server's own work is taken from
the same processors, which a service elsewhere would not do. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lavila_fast.archive.request import Request
from lavila_fast.archive.work import Narrating
from lavila_fast.bench.preprocess import encoded_film
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.errors import MissingExtraError
from lavila_fast.files import write_json
from lavila_fast.generate.options import Options
from lavila_fast.narrator import Narrator
from lavila_fast.remote.blocks import shared_blocks
from lavila_fast.remote.stores import store
from lavila_fast.video.children.pool import Children

COMMAND = "python -m lavila_fast.bench.remote"
URL = "s3://films/film.mp4"
_SERVER = "import sys; from moto.server import main; main(sys.argv[1:])"
_START = 120.0  # seconds that the server may take to start


class Relay:
    """Passes connections on to a port; `back` counts bytes on their way back."""

    def __init__(self, port: int, delay: float) -> None:
        self.back, self._port, self._delay = 0, port, delay
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            far = socket.create_connection(("127.0.0.1", self._port))
            for ends in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 18):
                if asks:
                    time.sleep(self._delay)
                else:
                    self.back += len(piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """A server of S3, moto's; gives its port.

    Raises:
        MissingExtraError: it is not installed.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _START
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise MissingExtraError("moto", "dev")
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def _settings(url: str) -> dict[str, str]:
    own = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**own, "AWS_ENDPOINT_URL": url}


def measure(seconds: int, width: int, height: int, delay: float, repeats: int, threads: int) -> dict[str, Any]:
    """Clips a second of both, run by run, and bytes fetched by the size of the film."""
    narrator = Narrator.from_pretrained("nano", threads=threads)
    rows: dict[str, list[float]] = {"local": [], "s3": []}
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder, s3_server() as port:
        relay = Relay(port, delay)
        os.environ.update(_settings(relay.url))
        film = Path(folder) / "film.mp4"
        film.write_bytes(encoded_film(width, height, 30 * seconds))
        size = film.stat().st_size
        _upload(film)
        for turn in range(-1, repeats):  # the first one warms up
            for name, where in (("local", str(film)), ("s3", URL)):
                shared_blocks.cache_clear()
                before = relay.back
                clips, took = _run(narrator, where, Path(folder) / f"{name}.jsonl")
                if turn >= 0:
                    rows[name].append(clips / took)
                    shares += [(relay.back - before) / size] if name == "s3" else []
        same = _texts(Path(folder) / "local.jsonl") == _texts(Path(folder) / "s3.jsonl")
    ratios = [there / here for here, there in zip(rows["local"], rows["s3"], strict=True)]
    return {
        "film_bytes": size,
        "film_seconds": seconds,
        "delay_ms": 1000 * delay,
        "clips_per_second": rows,
        "s3_vs_local": statistics.median(ratios),
        "bytes_vs_size": max(shares),
        "same_rows": same,
        "load": os.getloadavg()[0],
    }


def _upload(film: Path) -> None:
    import fsspec

    files = fsspec.filesystem("s3")
    files.mkdir("films")
    store(URL).put(film, URL)


def _run(narrator: Narrator, where: str, output: Path) -> tuple[int, float]:
    request = Request((where,), Narrating(Options()), output=str(output), overwrite=True, quiet=True)
    with Children() as children:
        children.start()
        found = request.find()
        summary = request.run(narrator, "nano", found, request.choose_output(found), children)
    if summary.failed:
        raise RuntimeError(summary.failed[0])
    return summary.clips, summary.seconds


def _texts(path: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "video": ""} for line in path.read_text("utf-8").splitlines()]


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON here.")
@click.option("--seconds", default=120, show_default=True, help="Of the film.")
@click.option("--width", default=512, show_default=True, help="Pixels.")
@click.option("--height", default=288, show_default=True, help="Pixels.")
@click.option("--delay", default=5.0, show_default=True, help="Milliseconds that each request is held back.")
@click.option("--repeats", default=5, show_default=True, help="Turns.")
@click.option("--threads", default=1, show_default=True, help="Of the model.")
def main(output: Path | None, seconds: int, width: int, height: int, delay: float, repeats: int, threads: int) -> None:
    """Time runs over a film elsewhere against runs over one here."""
    told = measure(seconds, width, height, delay / 1000, repeats, threads)
    result = {"command": " ".join([COMMAND, *sys.argv[1:]]), "machine": machine(), **told}
    here, there = (statistics.median(told["clips_per_second"][name]) for name in ("local", "s3"))
    click.echo(f"{here:.2f} clips/s from the disk, {there:.2f} from S3 at {delay:g} ms")
    click.echo(f"{told['bytes_vs_size']:.3f} bytes fetched for each of the film; load {told['load']:.1f}")
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    last = {name: round(told[name], 3) for name in ("s3_vs_local", "bytes_vs_size")}
    click.echo(json.dumps({**last, "same_rows": told["same_rows"]}))


if __name__ == "__main__":
    main()
