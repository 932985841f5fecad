"""What can be said of kernels without a GPU: they compile for every architecture, and preprocessing on a CPU is fast.

    python -m lavila_fast.bench.kernels --output bench/results/kernels.json     # make bench-kernels

Compiles all Triton and CUDA kernels ahead of time for five architectures and writes what each takes of a GPU as a
table, and times the fused preprocessing on one core. The last line is one JSON object; exit code 1 if a kernel does not
compile, lacks its tensor-core instructions, or spills.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lavila_fast.bench import preprocess
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.files import write_json, write_text
from lavila_fast.kernels import cuda_build
from lavila_fast.kernels.aot import ARCHITECTURES, Resources, triton_resources

KERNELS_COMMAND = "python -m lavila_fast.bench.kernels"


def all_resources() -> list[Resources]:
    """Of all kernels, Triton's and CUDA's.

    Raises:
        KernelError: one does not compile, or there is no nvcc.
    """
    return [*triton_resources(), *cuda_build.cuda_resources()]


KNOWN_SPILLS = {("decode/sample-top_p", 80): 2, ("decode/sample-top_k-top_p", 80): 2}  # one store and load a row


def problems(rows: Sequence[Resources]) -> list[str]:
    """What is wrong with compiled kernels, one line each."""
    found = [row.missing for row in rows if row.missing]
    spilling = [row for row in rows if row.spills > KNOWN_SPILLS.get((row.name, row.architecture), 0)]
    return found + [f"{row.name} for sm_{row.architecture} spills ({row.spills} instructions)" for row in spilling]


def resource_table(rows: Sequence[Resources]) -> str:
    """One line a kernel: registers, shared memory and tensor-core instructions on each architecture."""
    names = " | ".join(f"sm_{one}" for one in ARCHITECTURES)
    lines = [f"| kernel | {names} | tensor cores |", "|---|" + "---|" * (len(ARCHITECTURES) + 1)]
    for name in dict.fromkeys(row.name for row in rows):
        mine = {row.architecture: row for row in rows if row.name == name}
        cells = [_resource_cell(mine.get(architecture)) for architecture in ARCHITECTURES]
        used = sorted({one.split(".")[0] for row in mine.values() for one in row.tensor_cores})
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {', '.join(used) or '–'} |")
    return "\n".join(lines)


def _resource_cell(row: Resources | None) -> str:
    if row is None:
        return "–"
    spills = f", **{row.spills} spills**" if row.spills else ""
    return f"{row.registers} / {row.shared / 1024:.1f}{spills}"


def kernels_page(result: dict[str, Any], rows: Sequence[Resources]) -> str:
    """The results as Markdown."""
    return "\n\n".join(
        [
            "# Kernels, compiled without a GPU",
            "Registers a thread / KiB of shared memory a block. None of these has run on a GPU yet.",
            resource_table(rows),
            "# Preprocessing on one core",
            preprocess.preprocess_page(result["preprocess"]),
            f"{stamp(result['machine'])}. `{result['command']}`",
        ]
    )


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON here and a page beside it.")
def main(output: Path | None) -> None:
    """Compile everything, time preprocessing; the last line is JSON."""
    rows = all_resources()
    wrong = problems(rows)
    result: dict[str, Any] = {
        "command": " ".join([KERNELS_COMMAND, *sys.argv[1:]]),
        "machine": machine(),
        "architectures": [f"sm_{one}" for one in ARCHITECTURES],
        "problems": wrong,
        "preprocess": preprocess.measure(),
        "resources": [asdict(row) for row in rows],
    }
    click.echo(kernels_page(result, rows))
    if output:
        write_json(output, result)
        write_text(output.with_suffix(".md"), kernels_page(result, rows) + "\n")
    for line in wrong:
        click.echo(f"error: {line}", err=True)
    told = {
        "preprocess_speedup_per_core": result["preprocess"]["preprocess_speedup_per_core"],
        "aot_kernels_compiled": len(rows),
        "aot_kernels": len({row.name for row in rows}),
        "aot_architectures": len(ARCHITECTURES),
        "aot_problems": len(wrong),
    }
    click.echo(json.dumps(told))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
