"""The way from a command's options (see `run_options`) to a run over videos, and what is said of it at the end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lavila_fast import log
from lavila_fast.cli.run_options import require_inputs
from lavila_fast.cli.streams import tell
from lavila_fast.engines.choose import ENGINES
from lavila_fast.errors import InputError
from lavila_fast.remote.urls import is_url, local_of

if TYPE_CHECKING:
    from lavila_fast.archive.fleet.crew import Fleet
    from lavila_fast.archive.fleet.muster import Workers
    from lavila_fast.archive.mirror import Mirror
    from lavila_fast.archive.outputs import Output
    from lavila_fast.archive.request import Request
    from lavila_fast.archive.run import Summary
    from lavila_fast.archive.sources.inputs import FoundInputs
    from lavila_fast.archive.work import Work
    from lavila_fast.clip_model import ClipModel
    from lavila_fast.dual_encoder import DualEncoder
    from lavila_fast.video.children.limits import ChildLimits
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
    require_inputs(inputs, given["manifest"])
    workers = _workers(given)
    with contextlib.ExitStack() as held:
        output = _mirrored(given["output"], given, held)
        features = _mirrored(beside.output if beside else None, given, held)
        given = {**given, "output": output.local if output else given["output"]}
        if beside and features:
            beside.output, beside.url = features.local, features.shown
        return _perform(inputs, given, work, open_model, beside, output.shown if output else None, workers)


def _mirrored(output: str | None, given: dict[str, Any], held: contextlib.ExitStack) -> Mirror | None:
    """An output that lies elsewhere, held while it is made; None for one that is here."""
    from lavila_fast.archive.mirror import Mirror

    if not is_url(output):
        return None
    assert output is not None
    if local := local_of(output):
        raise InputError(f"{output}: give it as a path, {local}")
    one = held.enter_context(Mirror(output, given["work"], given["upload_minutes"], given["overwrite"]))
    if not given["quiet"]:
        tell(f"{one.shown}: made in {one.folder}", err=True)
    return one


def _perform(
    inputs: tuple[str, ...],
    given: dict[str, Any],
    work: Work,
    open_model: OpenModel,
    beside: Beside | None,
    url: str | None,
    workers: Workers,
) -> int:
    """`perform` with an output that is here, whose rows go to a URL in the end."""
    from lavila_fast.archive.accounts.metrics import serving

    if engine := ENGINES.get(given["engine"]):  # said before videos are looked for
        engine.refuse_unused(given)
    with serving(given["metrics"]) as served, _children(given) as children:
        request = _request(inputs, given, work)
        if served:
            request = replace(request, metrics=served[0])
            _say(request, f"metrics: {served[1]}")
        found = request.find()
        output = replace(request.choose_output(found), url=url)
        size = given["part_mb"] << 20 if given["part_mb"] else None
        in_folder = beside is not None and beside.choose(request, found, output, size)
        if size and (output.kind == "folder" or not in_folder):
            if request.merge:
                raise InputError("--merge: segments are a file a video, or one; run lavila-fast segments on the parts")
            output = output.in_parts(size)
        model, work = open_model()
        request, output = replace(request, work=work), replace(output, rows=work.kind)
        if note := getattr(model, "note", ""):
            _say(request, f"{given['model']}: {note}")
        if given["isolate"] and not model.can_isolate:
            raise InputError(_NOT_ISOLATED)
        pool = children if model.can_isolate else None
        hire = partial(_hire, workers, given, children=pool)
        if beside:
            return beside.run(request, model, given["model"], found, output, pool, hire)
        model, fleet = hire(request, model)
        with fleet or contextlib.nullcontext():
            summary = request.run(model, given["model"], found, output, pool, fleet=fleet)
    return _tell(request, [(summary, output)])


def _workers(given: dict[str, Any]) -> Workers:
    """Who is asked for besides this process; each has its share of the threads then."""
    from lavila_fast.archive.fleet.muster import Workers

    if given["ray"] and given["download"]:
        raise InputError("--download: films fetched here are of no use to workers elsewhere; leave it out with --ray")
    workers = Workers.parse(given["processes"], given["devices"], given["ray"], given["threads"])
    given["threads"] = workers.threads_each(given["threads"])
    return workers


def _hire(
    workers: Workers,
    given: dict[str, Any],
    request: Request,
    model: ClipModel,
    also: tuple[Request, ClipModel] | None = None,
    *,
    children: Children | None,
) -> tuple[ClipModel, Fleet | None]:
    """The workers of a run, see `muster`."""
    from lavila_fast.archive.fleet.muster import muster

    return muster(workers, request, model, _limits(given) if children else None, children, also)


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
        url: Where they go in the end, if that is elsewhere.
    """

    output: str
    model: str
    open_dual: OpenDual
    url: str | None = None
    _chosen: tuple[Request, Output] | None = None

    def choose(self, request: Request, found: FoundInputs, first: Output, part_bytes: int | None) -> bool:
        """See that the output makes sense, before models are opened, beside the `first` one; says if it is a folder.

        Raises:
            InputError: it does not.
        """
        from lavila_fast.archive.places import require_apart
        from lavila_fast.archive.work import Embedding

        own = replace(request, work=Embedding(), output=self.output, format=None, frame_times=True, csv_safe=False)
        own = replace(own, merge=None)
        output = replace(own, prints_summary=False).choose_output(found)
        if output.kind == "stream":
            raise InputError(f"--embed {self.output}: embeddings beside narrations go to a file; name a .parquet")
        require_apart(output, first, f"--embed {self.output}")
        if output.kind == "folder" and part_bytes:
            output = output.in_parts(part_bytes)
            if first.kind == "folder" and os.path.realpath(str(first.path)) == os.path.realpath(str(output.path)):
                raise InputError(f"--embed {self.output}: parts of two kinds in one folder; give another folder")
        self._chosen = own, replace(output, url=self.url)
        return output.kind == "folder"

    def run(
        self,
        request: Request,
        model: ClipModel,
        name: str,
        found: FoundInputs,
        output: Output,
        children: Children | None,
        hire: Callable[..., tuple[ClipModel, Fleet | None]],
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
            model, fleet = hire(request, model, (beside.one_by_one, dual))
            with fleet or contextlib.nullcontext():
                summary = request.run(model, name, found, output, children, beside, fleet)
        if summary.stopped is not None:
            return _tell(request, [(summary, output)])
        return _tell(request, [(summary, output), (beside.finish(summary, children), features)])


@contextlib.contextmanager
def _children(given: dict[str, Any]) -> Iterator[Children | None]:
    """Processes that decode, the first of which is ready when the model is."""
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
        with Children(_limits(given)) as children:
            children.start()
            yield children
    else:
        yield None


def _limits(given: dict[str, Any]) -> ChildLimits:
    from lavila_fast.video.children.limits import GIB, ChildLimits

    return ChildLimits(given["decode_timeout"], int(given["decode_memory"] * GIB))


def _request(inputs: tuple[str, ...], given: dict[str, Any], work: Work) -> Request:
    from lavila_fast.archive.recognise import Wishes
    from lavila_fast.archive.request import Request
    from lavila_fast.archive.sources.shards import Shard
    from lavila_fast.archive.windows.shots import require_shots
    from lavila_fast.archive.windows.still import Still
    from lavila_fast.video.nearby import seconds_of

    if given["windows"] == "shots":
        require_shots()
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
        "manifest",
    )
    return Request(
        inputs,
        work,
        batch=given["batch_size"] or _BATCH,
        nearest=seconds_of(given["frames"]),
        prints_summary=given["as_json"],
        download=int(given["download"] * 10**9),
        wishes=Wishes(given["identity"] == "full", given["retry_failed"], given["retry_damaged"]),
        shots=given["windows"] == "shots",
        still=Still.parse(given["still"], given["still_threshold"]),
        shard=Shard.parse(given["shard"]) if given["shard"] else None,
        reads=tuple(given.get("label_files", ())),
        merge=given.get("rules"),
        **{name: given[name] for name in same},
    )
