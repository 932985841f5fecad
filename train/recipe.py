"""A training run as a row: what is trained, for what, on which data, and how. Rows derive from one another.

    recipe = zoo.RECIPES["pretrain_tsf_b"]
    recipe = with_settings(recipe, ["lr=1e-4", "task.pseudo_temperature=0.1"])

A batch is what one update learns from, over all processes, so that a row means the same on one GPU and on a hundred;
how many clips a process takes at a time is a matter of memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from lavila_fast.errors import InputError
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.regularisation import Regularisation
from lavila_fast.train.schedules import Schedule
from lavila_fast.train.starts import Start
from lavila_fast.train.typed import fits, hints_of, said
from lavila_fast.video.names import GPU_DECODERS

Precision = Literal["float32", "bfloat16", "float16"]
# What may change when a run goes on: nothing that any step's result depends on, but for rounding.
FREE = ("about", "published", "save_epochs", "evaluate_epochs", "evaluate_clips", "keep", "micro", "decoder")
_DECODERS = ("pyav", *GPU_DECODERS)
_SEEDS, _LARGEST = 1 << 32, 1 << 63
_SHOWN = 80  # characters of a setting in a message


@dataclass(frozen=True)
class Choice:
    """A row of a table by its name, and what it is told.

    Attributes:
        name: Of the row.
        options: By the names of the row's own arguments.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def told(self, **more: Any) -> Choice:
        """The same with more options."""
        return Choice(self.name, {**self.options, **more})


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        name: Its name on the command line.
        about: What it is, in a line.
        model: A row of `presets.VARIANTS`; a classifier has the video tower of one.
        task: A row of `tasks.TASKS`.
        data: A row of `datasets.table.DATASETS`.
        starts: Where weights come from; everything else is fresh.
        scratch: Fresh weights are those of a model that learns all by itself, see `fresh.seeded`, not the original's,
            which change nothing of the models that a new one is put together from.
        freeze: Rules of `parameters.FREEZING`.
        frames: Of a clip.
        area: Smallest and largest share of a picture that a training crop shows.
        flips: Whether half of the training clips are mirrored.
        levels: Whether training clips travel as uint8, at most half a level of 255 off; else as float32.
        decoder: Of `video.names`: who decodes training clips, on the GPU of each process where there is one. Which
            clips, frames and parts are seen does not depend on it; PyAV reads what another one cannot.
        epochs: How often the data are gone through; `steps`, if not 0: how many updates instead.
        batch_size: Clips of an update.
        micro: Clips that a process takes at a time, at most.
        negatives: ``all``: losses over pairs compare all clips of an update, also where a process takes them piece by
            piece; ``micro``: those taken at the same time, as the original's accumulation does.
        lr: Peak learning rate; `lr_start`, `lr_end`, `warmup_epochs` and `fix_lr` as in `Schedule`; `warmup_steps`, if
            not 0: how many updates instead of epochs.
        optimiser: See `Optimisation`; its `accumulate` follows from the batch.
        regularisation: See `Regularisation`.
        precision: Of what is computed; weights, their updates and losses are float32.
        ema: Decay of averaged weights, which are kept beside the others; 0: none.
        seed: Of fresh weights, of the order of clips, and of all that is drawn.
        save_epochs: From one checkpoint to the next; `keep` of them stay, and the best.
        evaluate_epochs: From one look at the validation data to the next; `evaluate_clips` of them at most.
        published: Figures of the run that it repeats.
    """

    name: str
    model: str
    task: Choice
    data: Choice
    about: str = ""
    starts: tuple[Start, ...] = ()
    scratch: bool = False
    freeze: tuple[str, ...] = ()
    frames: int = 4
    area: tuple[float, float] = (0.5, 1.0)
    flips: bool = False
    levels: bool = True
    decoder: str = "pyav"
    epochs: int = 5
    steps: int = 0
    batch_size: int = 1024
    micro: int = 32
    negatives: Literal["all", "micro"] = "all"
    lr: float = 3e-5
    lr_start: float = 1e-6
    lr_end: float = 1e-5
    warmup_epochs: float = 1.0
    warmup_steps: int = 0
    fix_lr: bool = False
    optimiser: Optimisation = field(default_factory=Optimisation)
    regularisation: Regularisation = field(default_factory=Regularisation)
    precision: Precision = "float32"
    ema: float = 0.0
    seed: int = 0
    save_epochs: float = 1.0
    evaluate_epochs: float = 1.0
    evaluate_clips: int = 512
    keep: int = 3
    published: str = ""

    def __post_init__(self) -> None:
        """Check what would fail late.

        Raises:
            InputError: numbers that make no sense.
        """
        for name in ("frames", "epochs", "batch_size", "micro", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("steps", "warmup_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, but is {getattr(self, name)}")
        if min(self.save_epochs, self.evaluate_epochs) <= 0 or not 0 <= self.ema < 1:
            raise InputError("save_epochs and evaluate_epochs must be over 0, and ema from 0 to 1")
        if self.warmup_epochs < 0 or self.evaluate_clips < 0 or not 0 <= self.seed < _SEEDS:
            raise InputError(f"warmup_epochs and evaluate_clips must not be negative, and seed from 0 to {_SEEDS - 1}")
        if self.negatives not in ("all", "micro"):
            raise InputError(f"negatives {self.negatives}: take all or micro")
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise InputError(f"precision {self.precision}: take float32, bfloat16 or float16")
        if self.decoder not in _DECODERS:
            raise InputError(f"decoder {self.decoder}: take {', '.join(_DECODERS[:-1])} or {_DECODERS[-1]}")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InputError(f"area must be two shares, the smaller first, not {self.area[0]:g} and {self.area[1]:g}")

    def schedule(self, updates: int, each: int) -> Schedule:
        """Learning rates of a run of so many updates, `each` of them an epoch."""
        warmup = min(self.warmup_steps or int(self.warmup_epochs * each), updates)
        return Schedule(self.lr, updates, warmup, self.lr_start, self.lr_end, self.fix_lr)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @property
    def identity(self) -> str:
        """All that a checkpoint depends on; a run with another one does not go on with it."""
        kept = {name: value for name, value in self.to_dict().items() if name not in FREE}
        return json.dumps(kept, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """A recipe with some of its values replaced.

    Args:
        recipe: Of which.
        settings: ``NAME=VALUE`` each; parts of parts by dots, ``optimiser.weight_decay=0``. Values are JSON, or words.

    Raises:
        InputError: there is no such name, or the value is of another kind.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {_short(setting)}: give NAME=VALUE")
        recipe = _set(recipe, path.strip().split("."), _value(text.strip(), _short(setting)), _short(setting))
    return recipe


def _short(setting: str) -> str:
    """What was given, as far as a line has room for it."""
    return setting if len(setting) <= _SHOWN else f"{setting[:_SHOWN]}…"


def _value(text: str, setting: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(f"--set {setting}: lists within lists without end; give a value") from None
    except ValueError:
        return {"True": True, "False": False, "none": None}.get(text, text)
    if not _finite(value):
        raise InputError(f"--set {setting}: is no finite number, or too large a one; give another")
    return value


def _finite(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, (int, float)) or abs(value) < (_LARGEST if isinstance(value, int) else math.inf)


def _set(holder: Any, path: list[str], value: Any, setting: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(holder, Choice):
        return holder.told(**{".".join(path): _tupled(value)})
    known = [one.name for one in fields(holder)]
    if name not in known:
        near = get_close_matches(name, known, 1)
        raise InputError(f"--set {setting}: there is no {name}{f'; did you mean {near[0]}?' if near else ''}")
    old = getattr(holder, name)
    if rest and (is_dataclass(old) or isinstance(old, Mapping)):
        new = {**old, ".".join(rest): value} if isinstance(old, Mapping) else _set(old, rest, value, setting)
    elif rest:
        raise InputError(f"--set {setting}: {name} has no parts")
    else:
        new = _fitting(name, old, value, setting)
    hint = hints_of(type(holder))[name]
    if not fits(new, hint):
        raise InputError(f"--set {setting}: {name} is {old!r} in the recipe; give {said(hint)}")
    return replace(holder, **{name: new})


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _fitting(name: str, old: Any, value: Any, setting: str) -> Any:
    """A value as the one that it replaces."""
    if name == "starts":
        return _starts(value, setting)
    if isinstance(old, Choice) and isinstance(value, str):
        return Choice(value)
    if isinstance(old, tuple):
        return _tupled(value) if isinstance(value, list) else () if value in (None, "") else (value,)
    if isinstance(old, (Optimisation, Regularisation)):
        raise InputError(f"--set {setting}: {name} has parts; set one of them, such as {name}.{fields(old)[0].name}")
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(old) is not type(value):
        raise InputError(f"--set {setting}: {name} is {old!r} in the recipe; give another {type(old).__name__}")
    return value


def _starts(value: Any, setting: str) -> tuple[Start, ...]:
    """Of ``KIND:SOURCE`` or a list of such; none for fresh weights."""
    told = [] if value in (None, "", []) else value if isinstance(value, list) else [value]
    found = []
    for one in told:
        kind, colon, source = str(one).partition(":")
        if not colon:
            raise InputError(f"--set {setting}: give starts as KIND:SOURCE, such as clip:clip-vit-b-16, or none")
        found.append(Start(kind, source))
    return tuple(found)
