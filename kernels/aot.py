"""Every Triton kernel compiled ahead of time, without a GPU, with what it takes of one.

Each kernel module says in `variants()` with which types and block sizes it is launched; this compiles all of them for
all architectures and reads registers, shared memory, spills and tensor-core instructions from the machine code. It
must run without Triton's interpreter, which replaces the kernels; `triton_resources` therefore starts processes of its
own.

    python -m lavila_fast.kernels.aot            # a table for people
    python -m lavila_fast.kernels.aot --json     # for scripts
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lavila_fast.errors import KernelError

ARCHITECTURES = (80, 87, 89, 90, 100)
MODULES = (
    "attention.triton_space",
    "attention.triton_time",
    "attention.triton_cls",
    "norm.triton_norm",
    "decode.triton_cross",
    "decode.triton_cached",
    "decode.triton_sampling",
    "int8.triton_int8",
)
TENSOR_CORES = re.compile(r"\b((?:HMMA|IMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA)(?:\.\w+)*)")
SPILLS = re.compile(r"\b(?:STL|LDL)\b")


@dataclass(frozen=True)
class Variant:
    """One way a kernel is launched.

    Attributes:
        name: ``op/detail``, unique.
        kernel: The ``triton.jit`` function.
        types: Of each argument that is no constant, in Triton's words: ``*bf16``, ``*i8``, ``i32``, ``fp32`` …
        constants: The ``tl.constexpr`` arguments.
        divisible: Arguments known to be multiples of 16 (pointers always are), as a launch would find.
        tensor_cores: Whether its code must hold tensor-core instructions.
        since: The least architecture on which it is launched; others have not the shared memory for it.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3
    divisible: Sequence[str] = ()
    tensor_cores: bool = False
    since: int = 0


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes of a GPU.

    Attributes:
        name: Of the variant.
        architecture: 90 for sm_90 and so on.
        registers: A thread.
        shared: Bytes of shared memory a block, static and dynamic.
        spills: Instructions that store to or load from local memory; 0 where all fits into registers.
        stack: Bytes of local memory a thread.
        tensor_cores: The tensor-core instructions found, if it must have any.
    """

    name: str
    architecture: int
    registers: int
    shared: int
    spills: int
    stack: int
    tensor_cores: tuple[str, ...]
    wants_tensor_cores: bool

    @property
    def missing(self) -> str:
        """What it should have and has not, or an empty string."""
        if self.wants_tensor_cores and not self.tensor_cores:
            return f"{self.name} for sm_{self.architecture} has no tensor-core instruction"
        return ""


def variants() -> list[Variant]:
    """All of them."""
    return [one for name in MODULES for one in import_module(f"lavila_fast.kernels.{name}").variants()]


def compile_variant(variant: Variant, architecture: int) -> Resources:
    """Compile one and read what it takes.

    Raises:
        KernelError: it does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    aligned = [n for n, t in variant.types.items() if t.startswith("*")] + list(variant.divisible)
    source = ASTSource(
        fn=variant.kernel,
        signature={n: variant.types.get(n, "constexpr") for n in names},
        constexprs=dict(variant.constants),
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except Exception as error:  # the compiler's own, many
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise KernelError(f"{variant.name} does not compile for sm_{architecture}: {reason}") from error
    used, code = _inspect(compiled.asm["cubin"], variant.tensor_cores)
    return Resources(
        variant.name,
        architecture,
        used["REG"],
        max(compiled.metadata.shared, used["SHARED"]),
        len(SPILLS.findall(code)),
        used["STACK"],
        tuple(sorted(set(TENSOR_CORES.findall(code)))),
        variant.tensor_cores,
    )


def _inspect(cubin: bytes, wants_code: bool) -> tuple[dict[str, int], str]:
    """Resource usage by name, and the machine code as text if it is wanted or uses local memory.

    The tools come with Triton. Disassembling takes as long as all else of a small kernel, and where there is no local
    memory there are no spills to count.
    """
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)

        def run(tool: str, flag: str) -> str:
            return subprocess.run([tools / tool, flag, file], check=True, capture_output=True, text=True).stdout  # noqa: S603

        usage = re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", run("cuobjdump", "-res-usage"))
        used = {name: int(value) for name, value in usage}
        return used, run("nvdisasm", "-c") if wants_code or used["STACK"] or used["LOCAL"] else ""


def compile_all(names: Sequence[str] = (), architectures: Sequence[int] = ARCHITECTURES) -> Iterator[Resources]:
    """Compile the variants whose name starts with one of `names` (all if there is none), in this process."""
    for variant in variants():
        if not names or variant.name.startswith(tuple(names)):
            for architecture in architectures:
                if architecture >= variant.since:
                    yield compile_variant(variant, architecture)


def triton_resources(architectures: Sequence[int] = ARCHITECTURES, processes: int = 2) -> list[Resources]:
    """Compile everything in processes without the interpreter.

    Raises:
        KernelError: a kernel does not compile.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    shares = [architectures[i::processes] for i in range(min(processes, len(architectures)))]
    running = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "lavila_fast.kernels.aot", "--json", *map(str, share)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for share in shares
    ]
    rows: list[Resources] = []
    for process in running:
        out, err = process.communicate()
        if process.returncode:
            raise KernelError((err.strip().splitlines() or ["the compiler ended without a word"])[-1])
        rows += [Resources(**{**row, "tensor_cores": tuple(row["tensor_cores"])}) for row in json.loads(out)]
    return sorted(rows, key=lambda row: (row.name, row.architecture))


def main(words: Sequence[str]) -> int:
    """Compile for the architectures named (default all) and print."""
    architectures = [int(word) for word in words if word.isdigit()] or list(ARCHITECTURES)
    try:
        rows = list(compile_all((), architectures))
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if "--json" in words:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        for row in rows:
            print(
                f"{row.name:48} sm_{row.architecture:<4} {row.registers:4} reg {row.shared:7} B {row.spills:4} spills"
            )
    missing = [row.missing for row in rows if row.missing]
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
