"""The plan of the house: a room imports only from floors below it, and the narrating road needs no torch.

Every import statement counts, wherever it stands: inside functions, under TYPE_CHECKING, in tests of a dependency.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"shown"},  # below the cellar: text made safe, which whatever speaks needs
    {"errors", "arrays", "log"},  # the cellar: configs check themselves, and need errors for it
    {"config", "records", "files", "machine", "parent", "kernels", "page", "remote"},
    {"video", "text", "presets", "download"},
    {"bundle", "pretrained", "kitchen"},
    {"models"},
    {"quant"},
    {"engines"},
    {"generate", "clip_model"},
    {"narrator", "dual_encoder", "classifier", "evaluate", "rephrase"},
    {"zero_shot"},  # labels in words over a dual encoder
    {"train", "archive", "serve"},
    {"exams", "search"},  # exams read the annotations that training reads
    {"export"},  # its parity reports may carry an exam's scores
    {"bench"},  # it measures what `export` makes
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, -1) for room in rooms}
ONE_ROOM = {"__main__": "cli"}
ROOF = len(FLOORS)  # `lavila_fast/__init__.py` shows the public names of all floors
VERSION = "lavila_fast.cli.main", "lavila_fast"  # the command line asks the package for its version
ROAD = [
    "cli",
    "narrator",
    "dual_encoder",
    "classifier",
    "archive",
    "generate",
    "engines.choose",
    "engines.host.ort",
    "bundle",
    "text",
    "video",
]
HEAVY = {"torch", "transformers", "onnx", "onnxscript", "matplotlib", "PIL", "deepspeed"}


def modules():
    """Dotted name → file, of everything that is installed as ours."""
    found = {}
    for top in ("lavila_fast", "export", "train", "bench", "kernels"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "lavila_fast" else ("lavila_fast", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name, top_level=False):
    """Dotted names that a module imports; with `top_level`, only those that run when it is imported."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = set()
    for node in running(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{MODULES[name]}:{node.lineno}: relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in MODULES else node.module for one in whole}
    return found


def running(node):
    """Nodes that are executed at import: not in functions, not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from running(child)


def room(name):
    """The first part after the package, or None for what is not ours; "" is the package itself."""
    package, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    return ONE_ROOM.get(first, first) if package == "lavila_fast" else None


def breaches(importer, imported):
    """What is wrong with these imports, by name."""
    mine = FLOOR.get(room(importer), ROOF)
    for name in sorted(imported):
        other = room(name)
        if other is None or other == room(importer) or (importer, name) == VERSION:
            continue
        if FLOOR.get(other, ROOF) >= mine:
            yield f"{importer} (floor {mine}) imports {name} (floor {FLOOR.get(other, ROOF)})"


def test_the_walk_sees_what_it_should():
    assert len(MODULES) > 40
    assert {"lavila_fast.narrator", "lavila_fast.export.graphs.to_onnx", "lavila_fast.train.session"} <= set(MODULES)
    assert "lavila_fast.models.load" in imports("lavila_fast.engines.openers")  # inside a function
    assert "lavila_fast.models.load" not in imports("lavila_fast.engines.choose", top_level=True)
    assert "lavila_fast.models.narrator" in imports("lavila_fast.engines.host.eager")  # under TYPE_CHECKING
    assert list(breaches("lavila_fast.video.reader", {"lavila_fast.narrator", "numpy", "lavila_fast.errors"}))
    assert list(breaches("lavila_fast.video.reader", {"lavila_fast.text"}))  # the same floor
    assert list(breaches("lavila_fast.video.reader", {"lavila_fast"}))


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} - set(FLOOR) == {""}


def test_rooms_import_only_from_floors_below():
    wrong = [line for name in MODULES for line in breaches(name, imports(name))]
    assert not wrong, "\n".join(wrong)


def test_top_folders_are_imported_as_ours():
    """`import export` or `train` would find another package."""
    bare = {"export", "train", "bench", "kernels"}
    wrong = [name for name in MODULES if {one.partition(".")[0] for one in imports(name)} & bare]
    assert not wrong
    assert not [top for top in bare if (ROOT / top / "__init__.py").exists()]


def test_no_cycles_between_modules():
    open_, closed = [], set()

    def visit(name):
        assert name not in open_, " → ".join([*open_, name])
        if name in closed:
            return
        open_.append(name)
        for one in imports(name, top_level=True) & set(MODULES):
            visit(one)
        closed.add(open_.pop())

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("start", ROAD)
def test_the_road_imports_nothing_heavy(start):
    """Transitively, at module level; test_export.py also runs it with all of them blocked."""
    todo = [name for name in MODULES if name.startswith(f"lavila_fast.{start}")]
    assert todo
    seen = {}
    while todo:
        name = todo.pop()
        for one in imports(name, top_level=True):
            assert one.partition(".")[0] not in HEAVY, f"{name} imports {one}"
            if one in MODULES and one not in seen:
                seen[one] = name
                todo.append(one)
