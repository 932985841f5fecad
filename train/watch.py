"""What one sees of a run: a line now and then, a JSON line of each, TensorBoard or W&B where they are, and a plot."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lavila_fast.errors import InputError, MissingExtraError, StorageError
from lavila_fast.files import replacing, storage_error, warn
from lavila_fast.shown import shown
from lavila_fast.train.portable import ROOM

LOG, PLOT, SAMPLES = "log.jsonl", "log.svg", "samples.jsonl"


_PLOTTED = {"loss": "loss", "lr": "learning rate", "clips_per_s": "clips a second", "norm": "norm of the gradient"}
_SPOKEN = ("step", "of", "epoch", "validation", "clips_per_s", "data_wait", "mfu", "eta_s")  # by words of their own


class Sink(Protocol):
    """Where numbers go."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers of a step."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


class _TensorBoard:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def add(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise InputError("wandb is not installed; run: pip install wandb") from error
        self._run: Any = wandb.init(dir=str(folder), config=settings, name=settings.get("name"), resume="allow")

    def add(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[Path, dict[str, Any]], Sink]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


class Watch:
    """Gathers numbers of updates; says their means every so many of them.

    On processes but the first one it does nothing.
    """

    def __init__(
        self,
        folder: Path,
        updates: int,
        clips: int,
        *,
        every: int = 10,
        flops: float = 0.0,
        peak: float = 0.0,
        sinks: Sequence[Sink] = (),
        quiet: bool = False,
        first: bool = True,
    ) -> None:
        """A watch.

        Args:
            folder: Of the run.
            updates: Of the whole run; `clips` of each.
            clips: See there.
            every: Updates between lines.
            flops: Of a clip; with `peak`, operations a second of all devices together, they give the share reached.
            peak: See there.
            sinks: Where numbers go, too.
            quiet: Say nothing, only write.
            first: Whether this is the first process.
        """
        self.folder, self.updates, self.clips, self.every = folder, updates, clips, every
        self.flops, self.peak, self.sinks, self.quiet, self.first = flops, peak, sinks, quiet, first
        self._rows: list[dict[str, float]] = []
        self._since = time.perf_counter()

    def add(self, step: int, epoch: float, numbers: dict[str, float], waited: float = 0.0, due: bool = False) -> bool:
        """Numbers of an update, the same on every process; returns whether they made a line, with those before them.

        Args:
            step: Of which update; `epoch`: where it ends.
            epoch: See there.
            numbers: Its own.
            waited: Seconds for data, since the last line.
            due: Make a line whatever its number.
        """
        self._rows.append(numbers)
        if not due and step % self.every:
            return False
        seconds = max(time.perf_counter() - self._since, 1e-9)
        row = {"step": step, "of": self.updates, "epoch": round(epoch, 3), **means(self._rows)}
        row["clips_per_s"] = len(self._rows) * self.clips / seconds
        row["data_wait"] = waited / seconds
        if self.peak:
            row["mfu"] = row["clips_per_s"] * self.flops / self.peak
        row["eta_s"] = (self.updates - step) * seconds / len(self._rows)
        self.write(row)
        self.restart()
        return True

    def restart(self) -> None:
        """Forget what was gathered: what comes now is timed anew."""
        self._rows, self._since = [], time.perf_counter()

    def write(self, row: dict[str, Any]) -> None:
        """A row to everywhere."""
        if not self.first:
            return
        short = {name: _short(value) for name, value in row.items()}
        _append(self.folder / LOG, short)
        if not self.quiet:
            warn(progress_line(short))  # nobody reading does not end a run
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float))}
        for sink in self.sinks:
            sink.add(int(row["step"]), {name: value for name, value in numbers.items() if name not in ("step", "of")})

    def write_samples(self, step: int, samples: list[dict[str, str]]) -> None:
        """What the model says of a few clips, beside what people said."""
        if not self.first or not samples:
            return
        _append(self.folder / SAMPLES, {"step": step, "samples": samples})
        if not self.quiet:
            for one in samples:
                warn(shown(f"  people: {one['human']} | model: {one['model']}"))

    def close(self) -> None:
        """Draw the plot, end the sinks."""
        for sink in self.sinks:
            sink.close()
        if self.first:
            try:
                plot_log(self.folder)
            except StorageError as error:  # never in place of what ended the run, nor of its model
                warn(str(error))


def _append(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a file; one that a crash has torn is ended first."""
    with storage_error(path, ROOM), path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the rows that have it as one; NaN where none has."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).extend([] if math.isnan(value) else [value])
    return {name: sum(values) / len(values) if values else math.nan for name, values in found.items()}


def progress_line(row: Mapping[str, Any]) -> str:
    """A row of the log to read: what was learnt, then how fast; a part of the loss that is all of it is left out."""
    own = {name: value for name, value in row.items() if name not in _SPOKEN and value is not None}
    parts = [f"{n} {v:.4g}" for n, v in own.items() if not (n.endswith("_loss") and v == row.get("loss"))]
    if "validation" in row:
        return f"update {row['step']}, validation: {', '.join(parts)}"
    speed = [f"{row['clips_per_s']:.3g} clips/s", f"{row['data_wait']:.0%} of the time waiting for them"]
    speed += [f"MFU {row['mfu']:.0%}"] if row.get("mfu") else []
    left = f"{duration(row['eta_s'])} left"
    return (
        f"update {row['step']} of {row['of']}, epoch {row['epoch']:g}: {', '.join(parts)}; {', '.join([*speed, left])}"
    )


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if not math.isfinite(value) else float(f"{value:.5g}")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log; of steps that were done twice, after a crash, the later ones."""
    rows: dict[tuple[Any, bool], dict[str, Any]] = {}
    with contextlib.suppress(OSError), (folder / LOG).open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):  # what a crash has torn is none
                    rows[row["step"], "validation" in row] = row
    return sorted(rows.values(), key=lambda row: row["step"])


def plot_log(folder: Path) -> Path | None:
    """Loss, learning rate and speed over updates, as SVG; None if matplotlib is not there or nothing was logged."""
    rows = read_log(folder)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not rows:
        return None
    figure = Figure(figsize=(9, 6))  # in fixed places: looking for them costs as long again as drawing
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.09, top=0.94, wspace=0.24, hspace=0.38)
    for ax, (name, title) in zip(figure.subplots(2, 2).flat, _PLOTTED.items(), strict=True):
        for held, style in ((False, "-"), (True, "o--")):
            some = [row for row in rows if isinstance(row.get(name), (int, float)) and ("validation" in row) == held]
            if some:
                label = "validation" if held else "training"
                ax.plot([row["step"] for row in some], [row[name] for row in some], style, label=label, markersize=4)
        ax.set(title=title, xlabel="updates")
        ax.grid(alpha=0.3)
        if name == "loss":
            ax.legend()
    with replacing(folder / PLOT) as file:
        figure.savefig(file, format="svg")
    return folder / PLOT
