"""The way from a command's options (see `run_options`) to a run over videos, and what is said of it at the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lavila_fast import log
from lavila_fast.cli.streams import tell
from lavila_fast.engines.choose import ENGINES
from lavila_fast.errors import InputError

if TYPE_CHECKING:
    from lavila_fast.archive.inputs import FoundInputs
    from lavila_fast.archive.outputs import Output
    from lavila_fast.archive.request import Request
    from lavila_fast.archive.run import Summary
    from lavila_fast.archive.work import Work
    from lavila_fast.clip_model import ClipModel
    from lavila_fast.dual_encoder import DualEncoder
    from lavila_fast.video.children.pool import Children

OpenModel = Callable[[], "tuple[ClipModel, Work]"]
OpenDual = Callable[[], "DualEncoder"]
_BATCH = 8
_NOT_ISOLATED = "--isolate: only frames that PyAV decodes for the CPU are, on Linux without `ulimit -f`"


def perform(
    inputs: tuple[str, ...], given: dict[str, Any], work: Work, open_model: OpenModel, beside: Beside | None = None
) -> int:
    """Run over videos, say what was done, and give back the exit code.

    Args:
        inputs: Files, folders, patterns.
        given: Values of the options above.
        work: What is done; only its kind of rows counts before the model is open.
        open_model: Opens the model, when inputs and output are known to make sense, and says the whole work.
        beside: What is to be embedded at the same time.
    """
    from lavila_fast.archive.metrics import serving

    if engine := ENGINES.get(given["engine"]):  # said before videos are looked for
        engine.refuse_unused(given)
    with serving(given["metrics"]) as served, _children(given) as children:
        request = _request(inputs, given, work)
        if served:
            request = replace(request, metrics=served[0])
            _say(request, f"metrics: {served[1]}")
        found = request.find()
        output = request.choose_output(found)
        if beside:
            beside.choose(request, found, output)
        model, work = open_model()
        request, output = replace(request, work=work), replace(output, rows=work.kind)
        if note := getattr(model, "note", ""):
            _say(request, f"{given['model']}: {note}")
        if given["isolate"] and not model.can_isolate:
            raise InputError(_NOT_ISOLATED)
        pool = children if model.can_isolate else None
        if beside:
            return beside.run(request, model, given["model"], found, output, pool)
        summary = request.run(model, given["model"], found, output, pool)
    return _tell(request, [(summary, output)])


def _say(request: Request, line: str) -> None:
    if not request.quiet:
        tell(line, err=True)


def _tell(request: Request, done: Sequence[tuple[Summary, Output]]) -> int:
    """Say what one run or two have done, and give back the exit code."""
    first, output = done[0]
    if request.prints_summary:
        more = {run.rows.name: {**summary.to_dict(), "output": str(run)} for summary, run in done[1:]}
        click.echo(json.dumps({**first.to_dict(), "output": str(output), **more}))
    if not request.quiet and (log.is_json() or not request.prints_summary):
        if costs := first.costs():
            tell(costs, err=True)
        for summary, run in done:
            told = {**summary.to_dict(), "output": str(run)}
            tell(summary.sentence(run), err=True, event="lavila.run.ended", **told)
    return next((summary.exit_code for summary, _ in done if summary.exit_code), 0)


@dataclass
class Beside:
    """Embeddings that are made of what another command decodes.

    Attributes:
        output: Where they go.
        model: Name of the dual encoder.
        open_dual: Opens it.
    """

    output: str
    model: str
    open_dual: OpenDual
    _chosen: tuple[Request, Output] | None = None

    def choose(self, request: Request, found: FoundInputs, first: Output) -> None:
        """See that the output makes sense, before models are opened, beside the `first` one.

        Raises:
            InputError: it does not.
        """
        from lavila_fast.archive.work import Embedding

        own = replace(request, work=Embedding(), output=self.output, format=None, frame_times=True, csv_safe=False)
        output = replace(own, prints_summary=False).choose_output(found)
        if output.kind == "stream":
            raise InputError(f"--embed {self.output}: embeddings beside narrations go to a file; name a .parquet")
        if output.kind == "file" and first.path and output.path and output.path.absolute() == first.path.absolute():
            raise InputError(f"--embed {self.output}: that is where the narrations go; give another name")
        self._chosen = own, output

    def run(
        self,
        request: Request,
        model: ClipModel,
        name: str,
        found: FoundInputs,
        output: Output,
        children: Children | None,
    ) -> int:
        """Run `request` with embeddings beside it, say what was done, and give back the exit code."""
        from lavila_fast.archive.beside import EmbeddedBeside, require_same_frames
        from lavila_fast.archive.work import Embedding

        assert self._chosen is not None
        dual = self.open_dual()
        require_same_frames(model, dual)
        own, features = replace(self._chosen[0], work=Embedding.of(dual)), self._chosen[1]
        features = replace(features, rows=own.work.kind)
        beside = EmbeddedBeside(own, dual, self.model, found, features)
        with beside.opened():
            summary = request.run(model, name, found, output, children, beside)
        if summary.stopped is not None:
            return _tell(request, [(summary, output)])
        return _tell(request, [(summary, output), (beside.finish(summary, children), features)])


@contextlib.contextmanager
def _children(given: dict[str, Any]) -> Iterator[Children | None]:
    """Processes that decode, the first of which is ready when the model is."""
    from lavila_fast.video.children.limits import GIB, ChildLimits
    from lavila_fast.video.children.pool import Children, serves

    if given["isolate"] is False:
        for name in ("decode_timeout", "decode_memory"):
            if click.get_current_context().get_parameter_source(name) != ParameterSource.DEFAULT:
                raise InputError(f"--{name.replace('_', '-')}: of no use with --no-isolate; leave one of the two out")
        yield None
        return
    if given["isolate"] and not serves():
        raise InputError(_NOT_ISOLATED)
    if serves():
        with Children(ChildLimits(given["decode_timeout"], int(given["decode_memory"] * GIB))) as children:
            children.start()
            yield children
    else:
        yield None


def _request(inputs: tuple[str, ...], given: dict[str, Any], work: Work) -> Request:
    from lavila_fast.archive.recognise import Wishes
    from lavila_fast.archive.request import Request
    from lavila_fast.archive.shards import Shard
    from lavila_fast.video.nearby import seconds_of

    same = (
        "clip_list",
        "output",
        "format",
        "clip_seconds",
        "stride_seconds",
        "workers",
        "decode_threads",
        "frame_times",
        "overwrite",
        "quiet",
        "csv_safe",
        "max_pixels",
    )
    return Request(
        inputs,
        work,
        batch=given["batch_size"] or _BATCH,
        nearest=seconds_of(given["frames"]),
        prints_summary=given["as_json"],
        wishes=Wishes(given["identity"] == "full", given["retry_failed"], given["retry_damaged"]),
        shard=Shard.parse(given["shard"]) if given["shard"] else None,
        **{name: given[name] for name in same},
    )
