"""Where there is no `fcntl` (Windows), everything imports and ONNX Runtime narrates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lavila_fast.pretrained import ASSETS

PROGRAM = """
import os, sys
sys.modules["fcntl"] = None
del os.O_CLOEXEC
import errno
del errno.EDQUOT
import lavila_fast, lavila_fast.narrator, lavila_fast.download, lavila_fast.archive.journals.journal
from lavila_fast.cli.main import main
main()
"""


def test_narrating_without_fcntl(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", PROGRAM, "narrate", str(ASSETS / "kitchen.mp4"), "-o", str(out)]
    environment = {**os.environ, "LAVILA_NATIVE": "0"}
    for _ in range(2):  # the second run takes what the first one wrote
        done = subprocess.run(
            [*command, "--threads", "1"], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
    assert len({json.loads(line)["start"] for line in out.read_text().splitlines()}) == 12
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("out.jsonl", "out.jsonl.run.json", "out.jsonl.videos.jsonl", "out.jsonl.report.json", ".out.jsonl.lock")
    }
