"""How to look for paraphrases, and which of them stay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lavila_fast.errors import InputError

DEFAULT_MODEL = "ramsrigouthamg/t5-large-paraphraser-diverse-high-quality"
"""The original's paraphraser."""
PRECISIONS = ("fp32", "bf16", "int8", "bnb-int8", "bnb-nf4")


@dataclass(frozen=True)
class Search:
    """Group beam search; the defaults are those of the original paraphraser's model card.

    Attributes:
        samples: Candidates a sentence, the best of all groups.
        beams: Of all groups together.
        groups: 1 is plain beam search.
        diversity: Taken off a word's log-probability for each beam of the groups before that has chosen it at this
            place.
        max_tokens: Of a candidate, begin token included.
        template: What the model reads; ``{}`` stands for the sentence.
    """

    samples: int = 5
    beams: int = 5
    groups: int = 5
    diversity: float = 0.7
    max_tokens: int = 128
    template: str = "paraphrase: {}"

    def __post_init__(self) -> None:
        """Check what does not fit together.

        Raises:
            InputError: says what.
        """
        if self.beams < 1 or self.groups < 1 or self.beams % self.groups:
            raise InputError(f"--beams {self.beams} must be a positive multiple of --groups {self.groups}")
        if not 1 <= self.samples <= self.beams:
            raise InputError(f"--samples {self.samples}: a search over {self.beams} --beams has 1 to {self.beams}")
        if self.max_tokens < 2 or not self.diversity >= 0:
            raise InputError("--max-tokens must be at least 2, and --diversity at least 0")
        if self.template.count("{}") != 1:
            raise InputError(f"--template {self.template!r}: write {{}} once, where the sentence stands")

    def to_dict(self) -> dict[str, Any]:
        """What candidates depend on."""
        return asdict(self)
