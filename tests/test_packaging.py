"""The top folders are links inside the package, and a source archive holds each of their files once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("bench", "export", "kernels", "train")


@pytest.mark.parametrize("name", TOPS)
def test_top_folders_are_links_in_the_package(name):
    link = ROOT / "lavila_fast" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


def test_a_bare_copy_imports(tmp_path):
    """Of a checkout, links and all; without a library beside it."""
    for name in ("lavila_fast", *TOPS):
        ignored = shutil.ignore_patterns("_build", "__pycache__", "results", "assets")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    code = (
        "import sys\n"  # an installed lavila_fast would be found first
        "sys.meta_path[:] = [each for each in sys.meta_path if 'ScikitBuild' not in type(each).__name__]\n"
        "import lavila_fast.export.build, lavila_fast.kernels.native\n"
        "import lavila_fast.train.losses, lavila_fast.bench.flops\n"
        "print(lavila_fast.kernels.native.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path)), done.stderr


@pytest.mark.slow
def test_a_source_archive_holds_everything_once(tmp_path):
    build = pytest.importorskip("scikit_build_core.build")
    code = f"from {build.__name__} import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert len(names) == len(set(names))
    assert {"CMakeLists.txt", "lavila_fast/machine.py", "lavila_fast/kernels/csrc/flags.txt"} <= set(names)
    assert {f"lavila_fast/kernels/csrc/{path.name}" for path in (ROOT / "kernels/csrc").glob("*.cpp")} <= set(names)
    assert {"lavila_fast/export/build.py", "lavila_fast/train/losses.py", "lavila_fast/bench/flops.py"} <= set(names)
    assert not [name for name in names if name.partition("/")[0] in TOPS or "/_build/" in name or "/results/" in name]
