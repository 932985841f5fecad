"""Options of the commands that run over videos (narrate, embed, classify), and the way from them to a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from lavila_fast.cli.choices import POSITIVE, LazyChoice
from lavila_fast.cli.streams import tell
from lavila_fast.engines.choose import ENGINES, engine_help, precisions
from lavila_fast.errors import InputError
from lavila_fast.video.names import DECODERS

if TYPE_CHECKING:
    from lavila_fast.archive.inputs import FoundInputs
    from lavila_fast.archive.outputs import Output
    from lavila_fast.archive.request import Request
    from lavila_fast.archive.run import Summary
    from lavila_fast.archive.work import Work
    from lavila_fast.clip_model import ClipModel
    from lavila_fast.dual_encoder import DualEncoder
    from lavila_fast.video.children.pool import Children

F = TypeVar("F", bound=Callable[..., Any])
OpenModel = Callable[[], "tuple[ClipModel, Work]"]
OpenDual = Callable[[], "DualEncoder"]
_SECONDS = click.FloatRange(min=0.001)
_BATCH = 8
_NOT_ISOLATED = "--isolate: only frames that PyAV decodes for the CPU are, on Linux without `ulimit -f`"


def _all(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Several options as one decorator, in the order that help shows them."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def places(formats: Callable[[], tuple[str, ...]], required: bool = False) -> Callable[[F], F]:
    """Options of the model, the output and the clips.

    Args:
        formats: What ``--format`` takes.
        required: Whether there is no output without ``-o``.
    """
    return _all(
        [
            click.option("--model", default="nano", show_default=True, help="Name, bundle folder or checkpoint."),
            click.option(
                "--tokenizer", metavar="PATH", help="Vocabulary of a checkpoint, where it does not lie beside it."
            ),
            click.option(
                "-o",
                "--output",
                metavar="PATH",
                required=required,
                help="A file for all videos, a folder for one file a video, or -.",
            ),
            click.option("--format", "format", type=LazyChoice(formats), help="Default: as in PATH."),
            click.option("--csv-safe", is_flag=True, help="For spreadsheets: no cell of a CSV is a formula."),
            click.option("--clip-seconds", type=_SECONDS, help="Length of a clip.  [default: the model's]"),
            click.option(
                "--stride-seconds", type=_SECONDS, help="From one clip's start to the next.  [default: a clip's length]"
            ),
            click.option(
                "--clips",
                "clip_list",
                metavar="LIST",
                type=click.Path(path_type=Path),
                help="Take the clips of this CSV, JSONL or pickle; INPUT is the folder of the videos it names.",
            ),
        ]
    )


machinery = _all(
    (
        click.option(
            "--batch-size",
            type=POSITIVE,
            help="Clips that the model takes at once.  [default: 8; of --engine torch-cuda, by the size of the GPU]",
        ),
        click.option(
            "--engine",
            default="auto",
            show_default=True,
            help=engine_help(),
        ),
        click.option(
            "--precision",
            type=LazyChoice(precisions),
            help="Of --engine torch-cuda.  [default: bf16]",
        ),
        click.option(
            "--decoder",
            type=click.Choice(DECODERS),
            default="auto",
            show_default=True,
            help="What decodes video; auto takes the GPU's where the model runs on one.",
        ),
        click.option("--threads", type=POSITIVE, help="Threads of the model.  [default: all cores]"),
        click.option(
            "--workers",
            type=click.IntRange(1, 1024),
            help="Videos decoded at once; those that are left share the last ones.  [default: one after the other, each"
            " by as many as keep the model busy]",
        ),
        click.option(
            "--decode-threads",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Threads of each decoder, for a file that no two can share: one without an index (TS, MPEG, AVI).",
        ),
        click.option(
            "--frames",
            metavar="exact|nearest:SECONDS",
            default="exact",
            show_default=True,
            help="nearest: a frame may be replaced by a cheaper one that is at most so far off, a key frame if"
            " there is one. Saves decoding; the model may say something else.",
        ),
        click.option(
            "--isolate/--no-isolate",
            default=None,
            help="Decode in processes of their own, so that a video that breaks its decoder costs nothing but"
            " itself.  [default: where frames go to the CPU, on Linux]",
        ),
        click.option(
            "--decode-timeout",
            type=_SECONDS,
            default=60.0,
            show_default=True,
            help="With --isolate: seconds without progress after which a video is given up.",
        ),
        click.option(
            "--decode-memory",
            metavar="GB",
            type=click.FloatRange(min=0.01, max=1 << 20),
            default=4.0,
            show_default=True,
            help="With --isolate: memory that decoding a video may take.",
        ),
        click.option(
            "--max-pixels",
            type=POSITIVE,
            default=1 << 27,
            show_default=True,
            help="Larger pictures are refused before they are decoded.",
        ),
        click.option(
            "--identity",
            type=click.Choice(("fast", "full")),
            default="fast",
            show_default=True,
            help="What a video is known by: its size and a hash of head, middle and tail, or of every byte.",
        ),
        click.option("--retry-failed", is_flag=True, help="Try videos again that failed before and have not changed."),
        click.option(
            "--retry-damaged", is_flag=True, help="Make clips again that hold substitutes for unreadable frames."
        ),
        click.option(
            "--frame-times", is_flag=True, help="Rows say when the frames that the model saw are shown, in seconds."
        ),
        click.option(
            "--overwrite", "--no-resume", "overwrite", is_flag=True, help="Begin anew, forget what PATH holds."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON at the end; rows go to a file."),
        click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only errors."),
    )
)
"""Options of engines, decoding, resuming and what is told."""


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
    if engine := ENGINES.get(given["engine"]):  # said before videos are looked for
        engine.refuse_unused(given)
    with _children(given) as children:
        request = _request(inputs, given, work)
        found = request.find()
        output = request.choose_output(found)
        if beside:
            beside.choose(request, found)
        model, work = open_model()
        request, output = replace(request, work=work), replace(output, rows=work.kind)
        if (note := getattr(model, "note", "")) and not request.quiet:
            tell(f"{given['model']}: {note}", err=True)
        if given["isolate"] and not model.can_isolate:
            raise InputError(_NOT_ISOLATED)
        pool = children if model.can_isolate else None
        if beside:
            return beside.run(request, model, given["model"], found, output, pool)
        summary = request.run(model, given["model"], found, output, pool)
    return _tell(request, [(summary, output)])


def _tell(request: Request, done: Sequence[tuple[Summary, Output]]) -> int:
    """Say what one run or two have done, and give back the exit code."""
    first, output = done[0]
    if request.prints_summary:
        more = {run.rows.name: {**summary.to_dict(), "output": str(run)} for summary, run in done[1:]}
        click.echo(json.dumps({**first.to_dict(), "output": str(output), **more}))
    elif not request.quiet:
        lines = [first.costs(), *(summary.sentence(run) for summary, run in done)]
        tell("\n".join(line for line in lines if line), err=True)
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

    def choose(self, request: Request, found: FoundInputs) -> None:
        """See that the output makes sense, before models are opened.

        Raises:
            InputError: it does not.
        """
        from lavila_fast.archive.work import Embedding

        own = replace(request, work=Embedding(), output=self.output, format=None, frame_times=True, csv_safe=False)
        output = replace(own, prints_summary=False).choose_output(found)
        if output.kind == "stream":
            raise InputError(f"--embed {self.output}: embeddings beside narrations go to a file; name a .parquet")
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
        **{name: given[name] for name in same},
    )
