"""A run as Prometheus scrapes it: ``--metrics 9464`` serves http://127.0.0.1:9464/metrics while the command goes on.

    with serving("127.0.0.1:9464") as metrics:
        metrics.watch("narrations", run)

Nothing is counted twice: at each scrape a run is asked how far it is. Only this machine can ask, unless a host is
given.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lavila_fast.archive.journals.videos import STATUSES
from lavila_fast.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from lavila_fast.archive.run import Run, Summary

HOME = "127.0.0.1"
_COUNTERS = {
    "lavila_clips": ("clips", "Clips that are done."),
    "lavila_clips_damaged": ("damaged", "Clips that hold substitutes for frames that could not be read."),
    "lavila_video_seconds": ("video_seconds", "Seconds of video that the done clips stand for."),
    "lavila_frames_decoded": ("decoded", "Frames that were decoded."),
    "lavila_cpu_seconds": ("cpu", "Processor time, all in all."),
    "lavila_decode_cpu_seconds": ("decode_cpu", "Processor time for reading, decoding and scaling."),
}


class Metrics:
    """What a command does, for a registry; a run for each kind of rows that it writes."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def watch(self, rows: str, run: Run) -> None:
        """Tell of this run from now on, too."""
        self._runs[rows] = run

    def collect(self) -> Iterator[Any]:
        """Called at each scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        runs = list(self._runs.items())
        told = {rows: run.so_far() for rows, run in runs}
        for name, (field, what) in _COUNTERS.items():
            counter = CounterMetricFamily(name, what, labels=["rows"])
            for rows, summary in told.items():
                counter.add_metric([rows], getattr(summary, field))
            yield counter
        yield from _divided(told)
        for name, what in _GAUGES.items():
            gauge = GaugeMetricFamily(name, what, labels=["rows"])
            for rows, run in runs:
                if (value := _gauge(name, run, told[rows])) is not None:
                    gauge.add_metric([rows], value)
            yield gauge


_GAUGES = {
    "lavila_clips_planned": "Clips that are to be done, as far as is known.",
    "lavila_queue_clips": "Clips that are decoded and wait for the model.",
    "lavila_eta_seconds": "Seconds that the planned clips will take yet, at the speed until now.",
}


def _gauge(name: str, run: Run, summary: Summary) -> float | None:
    if name == "lavila_clips_planned":
        return run.planned
    if name == "lavila_queue_clips":
        return run.waiting
    return summary.seconds / summary.clips * max(run.planned - summary.clips, 0) if summary.clips else None


def _divided(told: dict[str, Summary]) -> Iterator[Any]:
    """Counters with a second label."""
    from prometheus_client.core import CounterMetricFamily

    videos = CounterMetricFamily("lavila_videos", "Videos that are through.", labels=["rows", "status"])
    stages = CounterMetricFamily("lavila_stage_seconds", "Time of the main thread.", labels=["rows", "stage"])
    for rows, summary in told.items():
        for status in STATUSES:
            videos.add_metric([rows, status], summary.statuses[status])
        for stage, seconds in summary.stages.items():
            stages.add_metric([rows, stage], seconds)
    yield from (videos, stages)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``PORT`` or ``HOST:PORT``.

    Raises:
        InputError: it is neither.
    """
    found = re.fullmatch(r"(?:(?P<host>[^\s:]+|\[[0-9a-fA-F:.]+\]):)?(?P<port>\d{1,5})", text)
    if found is None or int(found["port"]) > 65535:
        raise InputError(f"--metrics {text}: give a port, such as 9464, or HOST:PORT")
    return (found["host"] or HOME).strip("[]"), int(found["port"])


@contextlib.contextmanager
def serving(address: str | None) -> Iterator[tuple[Metrics, str] | None]:
    """Serve metrics in the block: gives them, and where they are; None where no address is given.

    Raises:
        InputError: the port is taken, or the host is none of this machine's.
        MissingExtraError: prometheus_client is not installed.
    """
    if address is None:
        yield None
        return
    host, port = parse_address(address)
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    except ImportError as error:
        raise MissingExtraError("prometheus_client", "metrics") from error
    metrics, registry = Metrics(), CollectorRegistry()
    registry.register(metrics)  # type: ignore[arg-type]  # what has `collect` is a collector
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        told = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"--metrics {address}: cannot be served there ({told}); give another port") from error
    try:
        shown = f"[{host}]" if ":" in host else host
        yield metrics, f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
