"""What training begins with: the weights of CLIP and of language models, a row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote

HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Pretrained:
    """Weights of others that training begins with; `train/starts.py` says what of a model they are.

    Attributes:
        name: What a user types.
        kind: How the file is read: a row of `STARTS` there.
        repository: Whose it is at the hub, OWNER/NAME.
        revision: A commit, or a pull request whose files nobody took over.
        sha256: Of the file, as the hub states it.
        tokenizer: As in `tokenizer_kind`.
        note: What it is and what begins with it.
    """

    name: str
    kind: str
    repository: str
    revision: str
    sha256: str
    tokenizer: str
    note: str

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"{HUB}{self.repository}/resolve/{quote(self.revision, safe='')}/model.safetensors"

    @property
    def relative(self) -> str:
        """Path of the file below the cache or the folder that `pull --dir` names."""
        return f"pretrained/{self.name}.safetensors"


# Of two of the three CLIPs the owner publishes a pickle only. Their safetensors are the hub's own conversions, which
# stand in pull requests. The pickles, pytorch_model.bin, do as well, given to a run as a path.
_PRETRAINED = (
    Pretrained(
        "clip-vit-b-16",
        "clip",
        "openai/clip-vit-base-patch16",
        "refs/pr/10",
        "846bf12e84b91c2a65b44833a915241443b39356f1000ac1345c61d7bf8a209e",
        "clip",
        "CLIP ViT-B/16, 599 MB; video tower of TSF-B, text tower of its dual encoder",
    ),
    Pretrained(
        "clip-vit-l-14",
        "clip",
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "clip",
        "CLIP ViT-L/14, 1.7 GB; video tower of TSF-L, text tower of its dual encoder",
    ),
    Pretrained(
        "clip-vit-l-14-336",
        "clip",
        "openai/clip-vit-large-patch14-336",
        "refs/pr/8",
        "f51cb7b04a2afb04828b1b8e0edc34bbf082080d098b9874f5756e7b7ba8c807",
        "clip",
        "CLIP ViT-L/14 at 336 pixels, 1.7 GB; video tower of TSF-L@HR",
    ),
    Pretrained(
        "gpt2",
        "gpt2",
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        "gpt2",
        "GPT-2, 548 MB; text decoder of narrators",
    ),
    Pretrained(
        "gpt2-xl",
        "gpt2",
        "openai-community/gpt2-xl",
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        "gpt2",
        "GPT-2 XL, 6.4 GB; text decoder of large narrators",
    ),
    Pretrained(
        "distilbert-base-uncased",
        "distilbert",
        "distilbert/distilbert-base-uncased",
        "12040accade4e8a0f71eabdb258fecc2e7e948be",
        "5e3f1108e3cb34ee048634875d8482665b65ac713291a7e32396fb18f6ff0063",
        "wordpiece",
        "DistilBERT, 268 MB; text tower of the dual encoder that TSF-L@HR has",
    ),
)
PRETRAINED: Mapping[str, Pretrained] = MappingProxyType({row.name: row for row in _PRETRAINED})
