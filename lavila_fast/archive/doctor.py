"""What this machine can run and what is missing: one finding a line, with the command that mends it.

    for finding in examine(Path("narrations.jsonl")):
        print(finding.state, finding.topic, finding.said, finding.mend)

A check is a row of `CHECKS`: a function that gives findings. One that breaks is a finding itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lavila_fast import download
from lavila_fast.engines.choose import ENGINES
from lavila_fast.errors import LavilaError
from lavila_fast.files import locked
from lavila_fast.kernels import native
from lavila_fast.machine import available_cpus, available_memory, processor
from lavila_fast.presets import CHECKPOINTS

State = Literal["good", "note", "bad"]
_ROOM, _MEMORY = 1 << 30, 2 << 30  # bytes below which a run may not get far
_SECONDS = 0.5
EXTRAS = {  # module → extra of our package, and what it is for
    "pyarrow": ("parquet", "tables of rows and vectors"),
    "lancedb": ("search", "finding moments"),
    "mcp": ("mcp", "an index for agents"),
    "prometheus_client": ("metrics", "Prometheus"),
    "torch": ("torch", "checkpoints without a bundle, and evaluation"),
    "onnx": ("export", "export and parity"),
    "transformers": ("rephrase", "paraphrases"),
    "deepspeed": ("train", "training"),
}


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        topic: What it is about, in a word.
        state: ``good``; ``note``: it works, but; ``bad``: something that was asked for will not work.
        said: What was found.
        mend: A command, or what to do; "" if there is nothing.
    """

    topic: str
    state: State
    said: str
    mend: str = ""


def examine(output: Path | None = None, model: str = "nano") -> Iterator[Finding]:
    """All findings, one after the other.

    Args:
        output: Where rows are to go; None: here.
        model: With which this machine is tried.
    """
    for check in CHECKS:
        try:
            yield from check(output or Path.cwd(), model)
        except LavilaError as error:
            yield Finding(check.__name__.strip("_"), "bad", str(error))
        except Exception as error:
            told = f"could not be looked at ({type(error).__name__}: {error})"
            yield Finding(check.__name__.strip("_"), "note", told)


def _machine(output: Path, model: str) -> Iterator[Finding]:
    yield Finding("python", "good", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("processor", "good", f"{processor()}, {available_cpus()} of {os.cpu_count()} for this process")
    memory = available_memory()
    if memory is None:
        yield Finding("memory", "note", "nobody says how much is free")
    else:
        state: State = "good" if memory >= _MEMORY else "note"
        mend = "" if state == "good" else "take a smaller --batch-size and --workers 1"
        yield Finding("memory", state, f"{memory / 2**30:.1f} GiB free for this process", mend)


def _kernels(output: Path, model: str) -> Iterator[Finding]:
    if native.available():
        yield Finding("kernels", "good", f"our C++ runs here, with {native.isa()}")
    else:
        yield Finding("kernels", "note", native.why_not(), "python -m lavila_fast.kernels.build")


def _engines(output: Path, model: str) -> Iterator[Finding]:
    for row in ENGINES.values():
        if row.name in _ON_GPU and (why := _no_gpu()):
            yield Finding(f"engine {row.name}", "note", why)
            continue
        lacking = [name for name in _needs(row.extra) if importlib.util.find_spec(name) is None]
        if lacking:
            mend = f"pip install 'lavila-fast[{row.extra}]'"
            yield Finding(f"engine {row.name}", "note", f"needs {', '.join(lacking)}, which is not installed", mend)
        else:
            yield Finding(f"engine {row.name}", "good", row.what)


_ON_GPU = ("cuda", "onnxruntime-tensorrt", "onnxruntime-rtx", "tensorrt", "torch-cuda")
_MODULES = {"cuda": ["onnxruntime", "cuda"], "tensorrt": ["tensorrt"], "torch": ["torch"], "gpu": ["torch", "triton"]}


def _needs(extra: str | None) -> list[str]:
    return _MODULES.get(extra or "", [])


def _no_gpu() -> str:
    """Why no NVIDIA GPU can be used; "" if one can, as far as its driver shows."""
    if Path("/dev/nvidiactl").exists() or Path("/dev/nvgpu").exists() or shutil.which("nvidia-smi"):
        return ""
    return "no NVIDIA driver on this machine"


def _decoders(output: Path, model: str) -> Iterator[Finding]:
    import av

    yield Finding("decoder", "good", f"PyAV {av.__version__}, on the processor")
    if _no_gpu():
        return
    able = [name for name in ("PyNvVideoCodec", "torchcodec") if importlib.util.find_spec(name)]
    if able:
        yield Finding("decoder", "good", f"{', '.join(able)} for the GPU")
    else:
        yield Finding(
            "decoder", "note", "none for the GPU; frames come from the processor", "pip install PyNvVideoCodec"
        )


def _extras(output: Path, model: str) -> Iterator[Finding]:
    for module, (extra, use) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(extra, "note", f"{use}: {module} is not installed", f"pip install 'lavila-fast[{extra}]'")
        else:
            yield Finding(extra, "good", f"{use}: {module} {_version(module)}")


def _version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _disks(output: Path, model: str) -> Iterator[Finding]:
    folder = output if output.is_dir() else output.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    yield from _room("output", folder, "make room, or give another --output")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".lavila-fast-doctor-") as place:
            told = Finding("output", "good", f"{folder}: files can be written and locked")
            with locked(Path(place) / "lock", LavilaError("taken")) as whole:
                if not whole:
                    told = Finding("output", "note", f"{folder}: this disk has no locks; a file keeps other runs away")
            yield told
    except OSError as error:
        yield Finding(
            "output", "bad", f"{folder}: cannot be written ({error.strerror})", "give another --output, or the right"
        )
    cache = download.user_cache()
    if cache is None:
        yield Finding("cache", "note", "no home folder; models cannot be kept", "set LAVILA_FAST_HOME")
        return
    while not cache.exists() and cache != cache.parent:
        cache = cache.parent
    yield from _room("cache", cache, "make room for models, or set LAVILA_FAST_HOME to another disk")


def _room(topic: str, folder: Path, mend: str) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    state: State = "good" if free >= _ROOM else "note"
    yield Finding(topic, state, f"{folder}: {free / 2**30:.1f} GiB free", "" if state == "good" else mend)


def _models(output: Path, model: str) -> Iterator[Finding]:
    home = download.user_cache()
    rows = [row for row in CHECKPOINTS.values() if row.url]
    there = [row.name for row in rows if home and download.is_there(home / row.relative)]
    if there:
        yield Finding("models", "good", f"fetched: {', '.join(there)}")
    else:
        yield Finding(
            "models", "note", "only nano, of a made-up kitchen, is here", f"lavila-fast models pull {rows[0].name}"
        )


def _trial(output: Path, model: str) -> Iterator[Finding]:
    """Narrate a clip, as a run would."""
    from lavila_fast.engines.sampling import Warp
    from lavila_fast.generate.options import Options
    from lavila_fast.narrator import Narrator
    from lavila_fast.pretrained import ASSETS
    from lavila_fast.records import Clip
    from lavila_fast.video.sources import VideoSource

    narrator = Narrator.from_pretrained(model)
    source = VideoSource("kitchen.mp4", ASSETS / "kitchen.mp4")

    def narrate(begin: float) -> str:
        clips = narrator.read(source, [Clip("kitchen.mp4", begin, begin + narrator.clip_seconds)])
        ((row,),) = narrator.narrate_clips(clips, Options(warp=Warp(0.0)))
        return row.text

    narrate(0.0)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        narrate(2.0 * (1 + count % 8))
        count += 1
    pace = (time.perf_counter() - began) / count
    engine = narrator.fingerprint.partition(", ")[2]
    told = f"{model} runs on {engine}, decoder {narrator.decoder}: {pace:.2f} s a clip, one after the other"
    yield Finding("trial", "good", told)


CHECKS: tuple[Callable[[Path, str], Iterator[Finding]], ...] = (
    *(_machine, _kernels, _engines, _decoders, _extras, _disks, _models, _trial),
)


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing is bad."""
    return all(finding.state != "bad" for finding in findings)
