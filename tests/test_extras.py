"""What an error tells people to install brings what is missing; no extra brings two packages that are one folder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavila_fast.bundle.engine_key import BUILDERS
from lavila_fast.engines.choose import ENGINES

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = "lavila_fast", "export", "kernels", "train", "bench"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
BASE: list[str] = PROJECT["dependencies"]


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def brought(extra: str) -> Iterator[str]:
    """Packages that an extra names, those of extras within it too."""
    for line in EXTRAS[extra]:
        if within := re.match(r"lavila-fast\[(.*)\]", line):
            for name in within[1].split(","):
                yield from brought(name)
        else:
            found = re.match(r"[\w.-]+", line)
            assert found is not None, line
            yield canonical(found[0])


def told(node: ast.expr) -> str | None:
    """A constant, or what stands behind `error.name or`."""
    if isinstance(node, ast.BoolOp):
        node = node.values[-1]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def hints() -> Iterator[tuple[str, str, str]]:
    """Where, the missing package and the extra, of every error that the code spells out."""
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name not in ("MissingExtraError", "require"):
                continue
            assert isinstance(node, ast.Call)
            package, extra = told(node.args[0]), told(node.args[-1])
            if package and extra:
                yield path.name, package, extra
    for builder, extra in BUILDERS.items():
        yield "BUILDERS", builder, extra
    for reader in ("pynvvideocodec", "torchcodec"):
        yield "video/gpu", reader, reader
    yield "ort_plugin.py", "onnxruntime-ep-nv-tensorrt-rtx", "cuda"


def brings(extra: str, package: str) -> bool:
    """Under its own name, or under one that adds the CUDA it is for."""
    wanted = canonical(package)
    return any(one == wanted or re.fullmatch(rf"{wanted}-cu(da)?\d+", one) for one in brought(extra))


def test_every_hint_names_an_extra_that_brings_what_is_missing() -> None:
    found = sorted(set(hints()))
    assert len(found) > 20
    assert [hint for hint in found if hint[2] not in EXTRAS or not brings(hint[2], hint[1])] == []


def test_every_engine_names_an_extra_that_there_is() -> None:
    assert {row.extra for row in ENGINES.values()} - {None} <= set(EXTRAS)


def test_no_extra_brings_a_second_onnxruntime() -> None:
    """`onnxruntime-gpu` and the like unpack into the folder of `onnxruntime`, which is always there."""
    base = {canonical(line.partition(">")[0]) for line in BASE}
    assert "onnxruntime" in base
    others = {one for extra in EXTRAS for one in brought(extra) if one.startswith("onnxruntime")} - base
    assert all(one.startswith("onnxruntime-ep-") for one in others)
