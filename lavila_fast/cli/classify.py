"""``lavila-fast classify``: which of some labels windows of videos show, with or without a trained head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.cli.choices import PATH, POSITIVE
from lavila_fast.cli.embed import open_dual
from lavila_fast.cli.run_options import machinery, places
from lavila_fast.cli.running import perform
from lavila_fast.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from lavila_fast.archive.labelling import Labelling
    from lavila_fast.classifier import Classifier
    from lavila_fast.dual_encoder import DualEncoder


def _formats() -> tuple[str, ...]:
    from lavila_fast.archive.journals.kinds import LABELS

    return LABELS.offered()


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1)
@places(_formats)
@click.option(
    "--labels",
    "label_files",
    metavar="FILE",
    multiple=True,
    type=PATH,
    help="Text file, a label a line. A dual encoder needs it; to a classifier it gives names, once a head.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    help="Sentence with {} for the label; several are averaged.  [default: '#C C {}'; {} alone for labels that begin"
    " with #]",
)
@click.option("--temperature", type=float, help="Of the scores; smaller is surer.  [default: the model's]")
@click.option("--top-k", type=POSITIVE, default=5, show_default=True, help="Labels a window.")
@machinery
def classify(inputs: tuple[str, ...], **given: Any) -> None:
    """Say which labels windows of videos show: a dual encoder's by words, or a trained classifier's.

    A row a window: its likeliest labels and the share of each, a softmax over all of them. INPUTs, resuming, failures,
    records beside the output and exit codes are those of `lavila-fast narrate`. Without -o, labels of a single video
    are printed; those of several go to labels.jsonl.

    \b
    Examples:
      lavila-fast classify holiday.mp4 --labels verbs.txt
      lavila-fast classify videos/ --labels verbs.txt --template '#C C {}' --template '{}' -o labels.csv
      lavila-fast classify videos/ --model classifier-int8 -o labels.jsonl
    """  # noqa: D301
    from lavila_fast.archive.labelling import Labelling
    from lavila_fast.archive.signals import at_once
    from lavila_fast.zero_shot import checked_temperature, checked_templates, read_labels

    checked_templates(given["templates"])
    if given["temperature"] is not None:
        checked_temperature(given["temperature"])
    labels = tuple(read_labels(path) for path in given["label_files"])
    with at_once():
        code = perform(inputs, given, Labelling(), lambda: _open(given, labels))
    click.get_current_context().exit(code)


def _open(given: dict[str, Any], labels: tuple[tuple[str, ...], ...]) -> tuple[DualEncoder | Classifier, Labelling]:
    """The model and what is done with it: labels in words are a dual encoder's, where the model has both."""
    from lavila_fast.archive.labelling import Labelling

    if _is_classifier(given, bool(labels)):
        if given["templates"]:
            raise InputError(f"--template: {given['model']} is a classifier, whose labels are only names; leave it out")
        model = _open_classifier(given)
        named = Labelling.of_classifier(model, labels, given["temperature"], given["top_k"])
        return model, named
    if len(labels) != 1:
        told = "give --labels FILE, a label a line" if not labels else "give --labels once"
        raise InputError(f"{given['model']}: a dual encoder needs one list of labels; {told}")
    dual = open_dual(given, given["model"])
    return dual, Labelling.in_words(dual, labels[0], given["templates"], given["temperature"], given["top_k"])


def _is_classifier(given: dict[str, Any], named: bool) -> bool:
    from lavila_fast.bundle.manifest import open_bundle
    from lavila_fast.pretrained import find_model

    path = find_model(given["model"])
    if path.is_dir():
        models = open_bundle(path).models
        return "classifier" in models and not (named and "dual_encoder" in models)
    return _has_head(path)


def _has_head(checkpoint: Path) -> bool:
    try:
        from lavila_fast.models.weight_files import read_weights
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "torch") from error
    return any("fc_cls" in name for name in read_weights(checkpoint).tensors)


def _open_classifier(given: dict[str, Any]) -> Classifier:
    from lavila_fast.classifier import Classifier

    if given["tokenizer"]:
        raise InputError("--tokenizer: a classifier reads no words; leave it out")
    return Classifier.from_pretrained(
        given["model"], **{n: given[n] for n in ("threads", "engine", "precision", "decoder")}
    )
