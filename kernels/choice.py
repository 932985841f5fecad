"""Which implementation of an op runs: the one asked for by name, or the first that can.

Asking by name raises if it cannot run, with the reason; the automatic choice falls through and logs once what it took
and why not what stands before it. `ops.py` of each folder declares its `Op`; fast and slow paths share one signature.

    attention = Op("divided_attention", [Implementation("triton", why_not, run), Implementation("sdpa", always, run)])
    attention(qkv, 4, "space")                            # automatic
    attention(qkv, 4, "space", implementation="triton")   # this one, or KernelError
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lavila_fast.errors import KernelError
from lavila_fast.log import log_once


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        name: What a user asks for.
        why_not: From the op's arguments (and ``asked``, whether it was named): the reason why it cannot run on them, or
            an empty string. Under `torch.compile` it is traced, so it looks at shapes, types and devices only.
        run: The computation, with the op's signature.
    """

    name: str
    why_not: Callable[..., str]
    run: Callable[..., Any]


class Op:
    """An op with its implementations, the preferred first."""

    def __init__(self, name: str, implementations: Sequence[Implementation]) -> None:
        self.name = name
        self.implementations = {one.name: one for one in implementations}

    def __call__(self, *arguments: Any, implementation: str = "auto") -> Any:
        """Compute.

        Args:
            arguments: Of the op.
            implementation: ``auto`` or a name.

        Raises:
            KernelError: the implementation asked for is unknown or cannot run on these arguments.
        """
        return self.pick(*arguments, implementation=implementation).run(*arguments)

    def pick(self, *arguments: Any, implementation: str = "auto") -> Implementation:
        """The implementation that would run; errors as for calling."""
        if implementation != "auto":
            return self._named(implementation, arguments)
        reasons: list[str] = []
        for one in self.implementations.values():
            reason = one.why_not(*arguments, asked=False)
            if not reason:
                _tell(self.name, one.name, "; ".join(reasons))
                return one
            reasons.append(f"{one.name}: {reason}")
        raise KernelError(f"{self.name}: nothing can compute this ({'; '.join(reasons)})")

    def _named(self, name: str, arguments: Sequence[Any]) -> Implementation:
        if name not in self.implementations:
            raise KernelError(
                f"{self.name}: unknown implementation {name!r}; take auto, {', '.join(self.implementations)}"
            )
        one = self.implementations[name]
        if reason := one.why_not(*arguments, asked=True):
            raise KernelError(f"{self.name}: {name} cannot run here: {reason}")
        return one


def _tell(op: str, taken: str, reasons: str) -> None:
    torch = sys.modules.get("torch")  # ops of the narrating road come without it
    if torch is None or not torch.compiler.is_compiling():
        log_once("kernels", logging.INFO, f"{op}: {taken}" + (f" ({reasons})" if reasons else ""))


def always(*_: Any, asked: bool) -> str:
    """`why_not` of an implementation that runs everywhere."""
    return ""


HAS_TRITON = find_spec("triton") is not None


def _reads_interpreter() -> bool:
    if not HAS_TRITON:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


_INTERPRETED = _reads_interpreter()  # once: Triton reads it when a kernel is defined


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors (``TRITON_INTERPRET=1``): right, but slow."""
    return _INTERPRETED


def no_triton(tensor: Any, asked: bool) -> str:
    """Why Triton's kernels cannot run on this tensor, or an empty string; the interpreter only serves who asks."""
    if not HAS_TRITON:
        return "triton is not installed"
    if tensor.is_cuda or (asked and interpreted()):
        return ""
    return "the tensors are not on a GPU"
