"""`lavila-fast engines`: build the engines of a bundle on the machine that will run them, and say how they stand.

    lavila-fast engines build BUNDLE
    lavila-fast engines show BUNDLE

Errors are `LavilaError`s; the command line's entry prints them as one line and sets the exit code.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.bundle.engine_key import AOT, BUILDERS, FOLDER, graph_hash, misfits, read_key, this_machine
from lavila_fast.bundle.manifest import MANIFEST, Bundle, open_bundle
from lavila_fast.cli.choices import PATH, POSITIVE
from lavila_fast.cli.streams import tell
from lavila_fast.errors import BundleError, InputError, LavilaError, MissingExtraError
from lavila_fast.files import sha256

if TYPE_CHECKING:
    from lavila_fast.models.narrator import NarratorModel

_BUNDLE = click.argument("bundle", type=PATH)


@click.group()
def engines() -> None:
    """Build TensorRT engines from a bundle's graphs, where they will run."""


@engines.command("build")
@_BUNDLE
@click.option(
    "--builder",
    type=click.Choice(("tensorrt", "tensorrt_rtx", "torch_tensorrt", AOT)),
    help="Default: tensorrt_rtx for bundles exported for rtx, else tensorrt.",
)
@click.option("--checkpoint", type=PATH, help=f"The model, for {AOT} and torch_tensorrt.")
@click.option("--axis", "axes", multiple=True, metavar="NAME=MIN,OPT,MAX", help="Sizes of an axis, e.g. clips=1,8,16.")
@click.option("--gpu", "capabilities", multiple=True, help="For tensorrt_rtx: compute capability, e.g. 8.9.")
@click.option("--workspace-mib", type=POSITIVE, help="Most scratch memory on the GPU.")
@click.option("--timing-cache", type=PATH, help="File of timings.  [default: in the bundle]")
@click.option("--version-compatible", is_flag=True, help="Run on later TensorRTs of the same major version too.")
@click.option("--hardware-compatible", is_flag=True, help="Run on every GPU from Ampere on.")
@click.option("--device", default="cpu", show_default=True, help=f"For {AOT}: cpu or cuda.")
@click.option("--force", is_flag=True, help="Build engines again that are still good.")
def build_engines_of(bundle: Path, **given: Any) -> None:
    """Build the engines of BUNDLE; those still good are kept.

    Engines fit one GPU, one TensorRT and one graph. After a change of any of these, run this again.
    """
    opened = open_bundle(bundle, verify=True)
    target = opened.target
    builder = given["builder"] or ("tensorrt_rtx" if target == "rtx" else "tensorrt")
    if target == "cpu" and builder != AOT:
        raise BundleError(f"{bundle}: made for cpu; export it with --target tensorrt, jetson or rtx to build engines")
    try:
        keys = _packages(opened, given) if builder == AOT else _engines(opened, builder, given)
    except ImportError as error:
        if isinstance(error, LavilaError):
            raise
        raise MissingExtraError(error.name or "torch", "export") from error
    tell(f"{bundle / FOLDER}: {len(keys)} engines")


def _engines(opened: Bundle, builder: str, given: dict[str, Any]) -> dict[str, Any]:
    from lavila_fast.export.engine_axes import read_plan
    from lavila_fast.export.engines import RTX_CAPABILITIES, EngineOptions, build_engines

    bundle, workspace = opened.folder, given["workspace_mib"]
    options = EngineOptions(
        builder,
        {**read_plan(bundle, opened.models), **dict(_axis(text) for text in given["axes"])},
        workspace and workspace << 20,
        given["version_compatible"],
        given["hardware_compatible"],
        tuple(given["capabilities"]) or RTX_CAPABILITIES,
        given["timing_cache"] or bundle / FOLDER / "timing.cache",
    )
    if builder == "torch_tensorrt":
        return _torch_tensorrt(opened, options, given)
    keys: dict[str, Any] = build_engines(bundle, options, given["force"], _say)
    return keys


def _torch_tensorrt(opened: Bundle, options: Any, given: dict[str, Any]) -> dict[str, Any]:
    from lavila_fast.bundle.engine_key import engine_path
    from lavila_fast.export.engines import build_with_torch_tensorrt, still_good
    from lavila_fast.export.graphs.inplace import inplace_spec
    from lavila_fast.export.graphs.specs import encoder_spec

    model, weights = _model(opened, given)
    options, keys = replace(options, weights=weights), {}
    for spec in (encoder_spec(model), inplace_spec(model, way="scatter_nd")):
        graph, engine = opened.folder / f"{spec.name}.onnx", engine_path(opened.folder, spec.name)
        good = None if given["force"] else still_good(engine, graph, options)
        _say(f"{engine}: {'still good' if good else 'building'}")
        keys[spec.name] = good or build_with_torch_tensorrt(spec, graph, engine, options)
    return keys


def _packages(opened: Bundle, given: dict[str, Any]) -> dict[str, Any]:
    from lavila_fast.export.aot import build_packages

    model, _ = _model(opened, given)
    keys: dict[str, Any] = build_packages(model, opened.folder, given["device"], given["force"], _say)
    return keys


def _model(opened: Bundle, given: dict[str, Any]) -> tuple[NarratorModel, str]:
    """The model that these builders start from, and the digest of its weights, which are the bundle's."""
    from lavila_fast.models.checkpoint import weights_digest
    from lavila_fast.models.load import load_narrator

    if given["checkpoint"] is None:
        raise InputError("this builder starts from the model, not from a graph; name it with --checkpoint")
    wanted = opened.checkpoints.get("narrator")
    if wanted is None:
        raise BundleError(f"{opened.folder}: does not say which weights it was made from; export it again")
    model = load_narrator(given["checkpoint"])
    weights = weights_digest(model)
    if weights != wanted:
        raise InputError(f"{given['checkpoint']}: not the weights that {opened.folder} was made from; name those")
    return model, weights


def _axis(text: str) -> tuple[str, tuple[int, int, int]]:
    name, _, sizes = text.partition("=")
    parts = sizes.split(",")
    if not name or len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--axis {text}: expected NAME=MIN,OPT,MAX, e.g. clips=1,8,16")
    return name, (int(parts[0]), int(parts[1]), int(parts[2]))


def _say(line: str) -> None:
    tell(line, err=True)


@engines.command("show")
@_BUNDLE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def show_engines(bundle: Path, as_json: bool) -> None:
    """Say which engines BUNDLE has, what they were built for, and whether they fit."""
    if not (bundle / MANIFEST).is_file():
        open_bundle(bundle)
    rows = [_row(path) for path in sorted((bundle / FOLDER).glob("*")) if path.suffix in (".engine", ".pt2")]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        tell(f"{row['engine']}: {row['built_for']}: {row['state']}")
    if not rows:
        tell(f"{bundle}: no engines; build them with: lavila-fast engines build {bundle}")


def _row(engine: Path) -> dict[str, str]:
    try:
        key = read_key(engine)
    except BundleError as error:
        return {"engine": engine.name, "built_for": "nobody knows", "state": str(error)}
    where = ", ".join(key.capabilities)
    return {
        "engine": engine.name,
        "built_for": f"{key.builder} {key.version}, {f'{key.gpu} ({where})' if key.gpu else where}",
        "state": _state(engine, key),
    }


def _state(engine: Path, key: Any) -> str:
    if sha256(engine) != key.engine:
        return "altered"
    graph = engine.parent.parent / f"{engine.stem}.onnx"
    if key.builder in BUILDERS and (not graph.is_file() or graph_hash(graph) != key.graph):
        return "stale: its graph has changed"
    try:
        machine = this_machine(key.builder) if key.builder in BUILDERS else _aot_machine(key.gpu)
    except LavilaError as error:
        return f"cannot run here: {error}"
    wrong = misfits(key, machine, None)
    return "; ".join(wrong) if wrong else "good"


def _aot_machine(gpu: str) -> Any:
    from lavila_fast.engines.host.compiled import aot_machine

    return aot_machine("cpu" if gpu == "cpu" else "cuda")
