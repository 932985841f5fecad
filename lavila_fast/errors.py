"""What can go wrong, said so that the reader knows what to do next.

Every error a user can cause is a `LavilaError`: its text is one line that names the thing, what is the matter with it
and a way out. The command line prints that line and exits with the class's `exit_code`; a traceback means a bug of
ours.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class LavilaError(Exception):
    """Base of all errors that speak to a user."""

    exit_code = 1


class InputError(LavilaError, ValueError):
    """An argument, option or list file that does not make sense."""

    exit_code = 2


@contextlib.contextmanager
def exit_with_line() -> Iterator[None]:
    """For programs beside the command line: a `LavilaError` becomes its line and its exit code."""
    try:
        yield
    except LavilaError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


class VideoError(LavilaError):
    """A file that cannot be read as video; other files go on."""

    exit_code = 1

    def __init__(self, path: object, what: str, todo: str) -> None:
        """Say which file, what is the matter, and what to do about it."""
        super().__init__(f"{path}: {what}; {todo}")
        self.path, self.what, self.todo = str(path), what, todo


class CheckpointError(LavilaError):
    """Weights that are truncated, of another model, or not safe to load."""

    exit_code = 2


class ModelNotFoundError(InputError, CheckpointError):
    """A model or its vocabulary that is nowhere: a bad argument to some who ask, a bad checkpoint to others."""


class BundleError(LavilaError):
    """A bundle folder that is incomplete, of a newer version, or altered."""

    exit_code = 2


class DownloadError(LavilaError):
    """A file that could not be fetched or is not what it should be."""

    exit_code = 1


class ServerError(LavilaError):
    """A server that was asked does not answer, or not as it should."""

    exit_code = 1


class StorageError(LavilaError):
    """The output cannot be written (disk full, no permission)."""

    exit_code = 1


class PeerError(LavilaError):
    """Another process of a training run cannot be reached."""

    exit_code = 1


class ExportError(LavilaError):
    """An exported graph is not what was declared, or not the model; each way of going wrong has a class of its own."""

    exit_code = 1


class GraphNamesError(ExportError):
    """Inputs or outputs are missing, renamed or in another order."""


class GraphAxesError(ExportError):
    """An input or output has another rank, or other axes are dynamic, than declared."""


class GraphShapesError(ExportError):
    """An output has another size than declared."""


class GraphValuesError(ExportError):
    """The graph computes something else than the model."""


class KernelError(LavilaError):
    """A kernel that was asked for cannot run here, or on these arguments."""

    exit_code = 2


class ParityError(LavilaError):
    """An engine strays further from the reference than its limits allow."""

    exit_code = 1


class NotFiniteError(LavilaError):
    """Values that are no finite numbers came out of a model: from damaged weights, or from damaged frames."""

    exit_code = 1

    def __init__(self, clip: object = None, where: str = "the scores of its next word") -> None:
        """Say of which clip, where it is known; see `of`."""
        name = "a clip" if clip is None else str(clip)
        super().__init__(
            f"{name}: {where} are not all finite numbers; the model's weights may be damaged, "
            "so fetch or export them again, or try another engine"
        )
        self.clip, self.where = clip, where

    def of(self, clip: object) -> NotFiniteError:
        """The same of a clip that is known by now."""
        return NotFiniteError(clip, self.where)


class MissingExtraError(LavilaError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        """Name the missing package and the extra of ours that brings it."""
        super().__init__(f"{package} is not installed; run: pip install 'lavila-fast[{extra}]'")
