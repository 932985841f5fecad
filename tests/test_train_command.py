"""What `lavila-fast train` does before it trains: what it waits for, and what of itself it writes down."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "av", "tokenizers")
# Runs a command, then says which heavy packages it has loaded.
AFTER = f"""
import sys
from lavila_fast.cli.main import run
code = run(sys.argv[1:])
print(code, *sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--list"], "0"),
        (["--list", "--json"], "0"),
        (["--help"], "0"),
        (["finetune_retreival"], "2"),
        (["finetune_retrieval", "--set", "regularisation.checkpointing=all"], "2"),
        (["finetune_retrieval", "--set", "starts=magic:x"], "2"),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(words: list[str], told: str) -> None:
    done = subprocess.run([sys.executable, "-c", AFTER, "train", *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == told
    assert "\nnano_dual " in done.stdout or words != ["--list"]


def test_without_torch_recipes_are_listed_and_the_rest_names_the_extra() -> None:
    program = f"import sys; sys.modules['torch'] = None\n{AFTER}"
    listed, tried = (
        subprocess.run([sys.executable, "-c", program, "train", *words], capture_output=True, text=True, check=True)
        for words in (["--list"], ["try_retrieval", "--data", "mine.csv", "-o", "run"])
    )
    assert listed.stderr.split()[0] == "0"
    assert "torch is not installed; run: pip install 'lavila-fast[train]'" in tried.stderr
