"""A bundle against the models it was made from, in every engine that can run it here: what `export` calls behind every
bundle it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.manifest import Bundle, open_bundle
from lavila_fast.engines.choose import open_runtime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import BundleError, LavilaError, ParityError
from lavila_fast.evaluate.clips import ClipSource, FolderClips
from lavila_fast.export.parity.limits import Limits
from lavila_fast.export.parity.measure import BATCH
from lavila_fast.export.parity.report import Report, about, write_report
from lavila_fast.export.parity.run import QualityTask, run_parity
from lavila_fast.kernels import native
from lavila_fast.models.load import Model
from lavila_fast.pretrained import ASSETS

SHIPPED = ASSETS / "kitchen.mp4"


def check_bundle(
    folder: Path,
    models: Mapping[str, Model],
    limits: Limits | None = None,
    *,
    clips: ClipSource | None = None,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    task: QualityTask = "none",
    page: bool = True,
    strict: bool = True,
    quiet: bool = True,
) -> Report:
    """Compare a bundle with the models it was made from, and write the report into it.

    Args:
        folder: The bundle.
        models: By kind, as the float32 reference; not the quantized copies.
        limits: See `run_parity`.
        clips: None takes the film that is shipped with the package: quick, and no kitchen quality.
        engines: None takes every engine that can run the bundle here.
        threads: Of the engines.
        task: See `run_parity`.
        page: Write `parity.html` too.
        strict: Raise when a limit does not hold.
        quiet: No progress bars.

    Raises:
        ParityError: naming every limit that does not hold (the report is written nevertheless).

    A bundle for a target that this machine cannot run is reported as ``not run``.
    """
    bundle = open_bundle(folder)
    clips = clips or FolderClips(SHIPPED, 2 * BATCH)
    try:
        found = engines or _runnable_engines(bundle, threads)
        report = run_parity(
            bundle, models, clips, engines=found, threads=threads, limits=limits, task=task, quiet=quiet
        )
    except BundleError as error:
        if engines or bundle.target == "cpu":
            raise
        nothing = about(bundle, clips, 0, threads, {}, 0.0)  # types that no processor computes with
        report = Report(nothing, [], dict.fromkeys(models, f"cannot run here: {str(error).replace(f'{folder}/', '')}"))
    write_report(report, bundle, with_page=page)
    if strict and report.failures:
        raise ParityError(f"{folder}: strays from its reference: {'; '.join(report.failures)}")
    return report


def _runnable_engines(bundle: Bundle, threads: int | None) -> Sequence[str] | Mapping[str, NarratorRuntime]:
    """Every engine that can run the narrator of a bundle here.

    Graphs for a GPU that is not here are computed by ONNX Runtime on the CPU: that proves the graphs, not the engine.

    Raises:
        BundleError: none can.
    """
    if bundle.target == "cpu":
        return ["onnxruntime"] + (["native"] if (bundle.folder / WEIGHTS).is_file() and native.available() else [])
    if "narrator" not in bundle.models:
        return ["auto"]
    try:
        return {"auto": open_runtime(bundle, "auto", threads)}
    except LavilaError:
        from lavila_fast.engines.device.ort import OrtSlotRuntime

        name = f"onnxruntime on the CPU, not in {bundle.target}"
        return {name: OrtSlotRuntime(bundle.folder, bundle.narrator, "cpu", threads=threads)}
