"""``lavila-fast train``: options are read and checked here, `train.session` does the work."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lavila_fast.cli.choices import PATH, POSITIVE
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.files import write_text

if TYPE_CHECKING:
    from lavila_fast.train.recipe import Recipe

_STOPPED = 143  # after SIGTERM or Ctrl-C


@click.command()
@click.argument("recipe", required=False)
@click.option("--list", "listed", is_flag=True, help="Say which recipes there are.")
@click.option("--data", type=PATH, help="Folder of the data set, or your own list of video, start, end, text.")
@click.option("--videos", type=PATH, help="Folder of the videos, where it is not the data set's usual one.")
@click.option("-o", "--output", type=PATH, help="Folder of the run.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace a value of the recipe; repeat.")
@click.option("--tokenizer", metavar="PATH", help="Vocabulary, where it is neither beside the weights nor fetched.")
@click.option("--resume", is_flag=True, help="Go on from the folder's last checkpoint, if there is one.")
@click.option("--overwrite", is_flag=True, help="Begin afresh in a folder that holds an earlier run, which is lost.")
@click.option("--dry-run", is_flag=True, help="Check everything; say steps, parameters, memory and time.")
@click.option("--processes", type=POSITIVE, default=1, show_default=True, help="On this machine, one a GPU.")
@click.option("--zero", type=click.IntRange(0, 3), help="Share memory by DeepSpeed's ZeRO, at this stage.")
@click.option("--offload", is_flag=True, help="With --zero: the optimiser's state in the host's memory.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Readers of each process.")
@click.option("--compile", is_flag=True, help="Compile the model; the first update takes minutes.")
@click.option("--every", type=POSITIVE, default=10, show_default=True, help="Updates between progress lines.")
@click.option("--log", "sinks", multiple=True, help="Also to tensorboard or wandb; repeat.")
@click.option("--stop-after", "limit", type=POSITIVE, help="Save and leave after so many updates.")
@click.option("--slurm", type=PATH, help="Write a Slurm script of this run instead, see --nodes and --gpus.")
@click.option("--nodes", type=POSITIVE, default=1, show_default=True, help="Of --slurm.")
@click.option("--gpus", type=POSITIVE, default=8, show_default=True, help="Of --slurm, on each node.")
@click.option("-q", "--quiet", is_flag=True, help="No progress lines.")
@click.option("--json", "as_json", is_flag=True, help="What is found, or how it ended, as JSON on standard output.")
def train(recipe: str | None, listed: bool, as_json: bool, **given: Any) -> None:
    """Train RECIPE, a row of --list, on --data into the folder -o.

    \b
    lavila-fast train --list
    lavila-fast train finetune_retrieval --data mine.csv -o run --dry-run
    lavila-fast train pretrain_tsf_b --data datasets/Ego4D -o run --processes 8 --zero 1
    """  # noqa: D301
    from lavila_fast.train import zoo
    from lavila_fast.train.launch import follow_parent
    from lavila_fast.train.recipe import with_settings

    if listed or recipe is None:
        _say_list(as_json)
        if recipe is None and not listed:
            raise InputError("name a RECIPE of these")
        return
    row = with_settings(zoo.find_recipe(recipe), given["settings"])
    if given["slurm"]:
        _write_slurm(given)
        return
    follow_parent()
    _need_torch()
    if given["dry_run"]:
        _say_plan(row, given, as_json)
    elif (given["processes"] > 1 or given["zero"] is not None) and "RANK" not in os.environ:
        from lavila_fast.train.launch import several

        _check(row, given)
        raise click.exceptions.Exit(several(given["processes"], _words({"processes"})))
    else:
        _train(row, given, as_json)


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train") from error


def _say_list(as_json: bool) -> None:
    from lavila_fast.train.zoo import RECIPES

    if as_json:
        click.echo(json.dumps([row.to_dict() for row in RECIPES.values()], indent=2))
        return
    width = max(map(len, RECIPES))
    for row in RECIPES.values():
        tell(f"{row.name:<{width}}  {row.about}")


def _needed(given: dict[str, Any], name: str, option: str) -> Path:
    if given[name] is None:
        raise InputError(f"give {option}; see lavila-fast train --help")
    return Path(given[name])


def _place(row: Recipe, given: dict[str, Any]) -> Any:
    from lavila_fast.train.datasets.samples import Place

    return Place(_needed(given, "data", "--data"), row.frames, given["videos"], max(given["workers"], 1))


def _launch(given: dict[str, Any]) -> Any:
    from lavila_fast.train.launch import Launch

    names = ("zero", "offload", "workers", "compile", "every", "sinks", "quiet")
    return Launch(**{name: given[name] for name in names}, limit=given["limit"] or 0)


def _check(row: Recipe, given: dict[str, Any]) -> None:
    """Say once what each of several processes would say."""
    from lavila_fast.pretrained import find_start
    from lavila_fast.train.inputs import batch_share, length_of, open_recipe
    from lavila_fast.train.run_folder import refuse_used

    refuse_used(_needed(given, "output", "-o FOLDER"), given["resume"], given["overwrite"])
    for start in row.starts:
        find_start(start.source)
    batch_share(row, given["processes"])
    length_of(row, len(open_recipe(row, _place(row, given), given["tokenizer"]).opened.train))


def _train(row: Recipe, given: dict[str, Any], as_json: bool) -> None:
    import torch

    from lavila_fast.train.memory import keep_memory
    from lavila_fast.train.plan import slow_precision
    from lavila_fast.train.session import train_recipe

    warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of names that it will change: nothing to do for a user
    first = os.environ.get("RANK", "0") == "0"
    if first and not given["quiet"] and (slow := slow_precision(row)):
        tell(slow, err=True)
    if not torch.cuda.is_available():
        keep_memory()
    outcome = train_recipe(
        row,
        _place(row, given),
        _needed(given, "output", "-o FOLDER"),
        _launch(given),
        resume=given["resume"],
        overwrite=given["overwrite"],
        tokenizer=given["tokenizer"],
        command=_command(),
    )
    if not first:
        return
    if outcome.missing and not given["quiet"]:
        tell(f"clips could not be read, for {len(outcome.missing)} reasons, such as {outcome.missing[0]}", err=True)
    if as_json:
        model = str(outcome.model) if outcome.model else None
        click.echo(json.dumps({"steps": outcome.steps, "of": outcome.of, "model": model, "missing": outcome.missing}))
    elif outcome.model:
        tell(str(outcome.model))
    elif not given["quiet"]:
        tell(f"saved after update {outcome.steps} of {outcome.of}; the same command with --resume goes on", err=True)
    if outcome.steps < outcome.of and not given["limit"]:
        raise click.exceptions.Exit(_STOPPED)


def _say_plan(row: Recipe, given: dict[str, Any], as_json: bool) -> None:
    from lavila_fast.train.plan import plan_of, plan_page

    plan = plan_of(row, _place(row, given), given["processes"], given["zero"] or 0, given["tokenizer"])
    if as_json:
        click.echo(json.dumps(plan, indent=2))
    else:
        tell(plan_page(plan))


def _write_slurm(given: dict[str, Any]) -> None:
    from lavila_fast.train.launch import slurm_script

    _needed(given, "data", "--data")
    _needed(given, "output", "-o FOLDER")
    if given["overwrite"]:
        raise InputError("--slurm writes a job that goes on with what is in the folder; remove the folder yourself")
    path: Path = given["slurm"]
    words = [*_words({"slurm", "nodes", "gpus", "processes", "resume"}), "--resume"]
    write_text(path, slurm_script(words, given["nodes"], given["gpus"]))
    tell(f"{path}: sbatch {path}")


def _command() -> str:
    """This command for a shell, in whatever way it was called.

    Processes that were started for it, by ``--processes`` or by torchrun on one machine, are said as ``--processes``;
    those on several machines are started as they were.
    """
    called = sys.argv[0]
    by_name = ["lavila-fast"] if shutil.which("lavila-fast") == called else [called]
    program = by_name if Path(called).stem == "lavila-fast" else [sys.executable, "-m", "lavila_fast"]
    world = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    several = ["--processes", world] if world == os.environ.get("LOCAL_WORLD_SIZE") != "1" else []
    return shlex.join([*program, *_words({"processes"}), *several])


def _words(left_out: Collection[str]) -> list[str]:
    """This command as words, as it was understood, but for some options."""
    context = click.get_current_context()
    words = [str(context.info_name)]
    for param in context.command.params:
        name = str(param.name)
        if name in left_out or context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        value = context.params[name]
        if isinstance(param, click.Argument):
            words.append(str(value))
        elif isinstance(param, click.Option) and param.is_flag:
            words += [param.opts[-1]] if value else []
        else:
            words += [word for one in (value if param.multiple else [value]) for word in (param.opts[-1], str(one))]
    return words
