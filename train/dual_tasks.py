"""What dual encoders are trained for: a clip and its sentence near each other, others apart; whole or in pieces.

task = ContrastiveTask(model, chunk=8)  # a batch of any size in the memory of 8 clips
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavila_fast.config import ClipTextConfig
from lavila_fast.errors import InputError
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.losses import contrastive_rows, max_margin_loss, siglip_rows
from lavila_fast.train.task import Numbers, TrainingTask, needed

LARGEST_SCALE = 4.6052  # of a dual encoder's logit scale, a logarithm; about ln 100


class DualTask(TrainingTask):
    """Base of tasks over a dual encoder.

    A loss over all pairs of a batch needs all embeddings at once, but not all activations behind them. With `chunk`,
    the batch goes through the towers in pieces of so many clips, of which only embeddings are kept; backward takes the
    loss's gradient of each embedding, computes piece after piece again, and forgets it before the next (GradCache: Gao
    et al., 2021). The gradient is that of the whole batch. It costs a second forward pass, and random numbers are the
    same in both. What a process of B clips with N sentences in all keeps for backward, in numbers::

        activations of one piece, of the larger tower + 4·B·E for embeddings + 4·B·N and 2·N·E for the loss

    beside the batch itself, whose uint8 frames are normalised piece by piece.
    """

    model: DualEncoder

    def __init__(self, model: DualEncoder, normalize: bool, fast: bool = False, chunk: int | None = None) -> None:
        """A task over a dual encoder.

        Args:
            model: What is trained.
            normalize: Embeddings are scaled to unit length before the loss.
            fast: See `TrainingTask`.
            chunk: Clips that go through the towers together; None: all.

        Raises:
            InputError: `chunk` is below 1.
        """
        super().__init__(model, fast)
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk must be at least 1 clip, not {chunk}; leave it out for the whole batch at once")
        self.normalize, self.chunk = normalize, chunk

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Numbers]:
        """Score a batch; in pieces, each of which `embed` prepares by itself."""
        return super().forward(batch) if self.chunk is None else self.score(batch, batch.video)

    def embed(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of clips and sentences, (B, E) each; with `chunk`, of frames as the batch has them."""
        ids, mask = needed(batch, "ids"), None if isinstance(self.model.config.text, ClipTextConfig) else batch.mask
        if self.chunk is None:
            text_BE = self._read(ids, mask)
            return self._see(video), text_BE
        texts: list[Tensor] = []
        videos: list[Tensor] = []
        for start in range(0, len(video), self.chunk):
            here = slice(start, start + self.chunk)
            texts.append(checkpoint(self.computed, "_read", ids[here], _rows(mask, here), use_reentrant=False))
            videos.append(checkpoint(self._see_piece, video[here], use_reentrant=False))
        return torch.cat(videos), torch.cat(texts)

    def _read(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.model.embed_text(ids, mask, self.normalize)

    def _see(self, video: Tensor) -> Tensor:
        return self.model.embed_video(video, self.normalize)

    def _see_piece(self, video: Tensor) -> Tensor:
        seen: Tensor = self.computed("_see", self.shown(video))
        return seen

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The original clamps the scale, also where it is frozen."""
        return {"model.logit_scale": (0.0, LARGEST_SCALE)}


def _rows(value: Tensor | None, here: slice) -> Tensor | None:
    return None if value is None else value[here]


class ContrastiveTask(DualTask):
    """A clip and its sentence together, all other sentences of all processes apart; CLIP's loss.

    With `pseudo_temperature`, pairs that no person narrated have a temperature of their own, learnt if `learn_pseudo`:
    ``criterion.logit_scale_pseudo``, a logarithm, which nothing clamps. In the original its gradient is never cleared,
    so that each update follows the sum over all micro-batches since the beginning: `summed_pseudo`.
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        normalize: bool = True,
        pseudo_temperature: float | None = None,
        learn_pseudo: bool = True,
        summed_pseudo: bool = False,
        gradients: bool = True,
        fast: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(model, normalize, fast, chunk)
        self.gradients, self.two = gradients, pseudo_temperature is not None
        if pseudo_temperature is not None:
            if not pseudo_temperature > 0:
                raise InputError(f"pseudo_temperature must be over 0, not {pseudo_temperature:g}")
            scale = torch.tensor(math.log(1 / pseudo_temperature))
            self.criterion.logit_scale_pseudo = nn.Parameter(scale, requires_grad=learn_pseudo)
            if summed_pseudo and learn_pseudo:
                self.criterion.register_buffer("pseudo_gradients", torch.zeros(()))
                self.criterion.logit_scale_pseudo.register_hook(self._add_up)  # type: ignore[no-untyped-call]
        self._first = True

    def _add_up(self, gradient: Tensor) -> Tensor:
        """The gradient of a micro-batch; with the first one of an update go all those of updates before."""
        total: Tensor = self.criterion.pseudo_gradients  # type: ignore[assignment]
        whole = (gradient + total).to(gradient.dtype) if self._first else gradient
        total += gradient
        self._first = False
        return whole

    def after_update(self) -> None:
        """See `TrainingTask`."""
        self._first = True

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """`right` is the share of clips whose own sentence is the nearest; of people's and others', too."""
        video_BE, text_BE = self.embed(batch, video)
        scale, human, pseudo = self.model.logit_scale.float().exp(), None, None
        if self.two:
            human = needed(batch, "human")
            pseudo = self.criterion.logit_scale_pseudo.float().exp()  # type: ignore[operator, union-attr]
        loss, right_B = contrastive_rows(video_BE, text_BE, scale, pseudo, human, self.gradients)
        numbers = {"clip_loss": loss.detach(), "right": right_B.float().mean(), "scale": scale.detach()}
        if human is not None and pseudo is not None:
            for name, kind in (("human", human.bool()), ("pseudo", ~human.bool())):
                numbers |= {f"right_{name}": right_B[kind].float().mean(), f"rows_{name}": kind.float().sum()}
            numbers["pseudo_scale"] = pseudo.detach()
        return loss, numbers


class SiglipTask(DualTask):
    """Say of each clip with each sentence of all processes whether they belong together; SigLIP's loss.

    Beside the temperature a bias is learnt, ``criterion.logit_bias``. Both begin as in the paper; a temperature that
    a model brings along and is to keep is left alone with `scale` None.
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        scale: float | None = 10.0,
        bias: float = -10.0,
        fast: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(model, normalize=True, fast=fast, chunk=chunk)
        if scale is not None:
            with torch.no_grad():
                model.logit_scale.fill_(math.log(scale))
        self.criterion.logit_bias = nn.Parameter(torch.tensor(bias))

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """`right` is the share of clips whose own sentence is the nearest."""
        video_BE, text_BE = self.embed(batch, video)
        scale, bias = self.model.logit_scale.float().exp(), self.criterion.get_parameter("logit_bias").float()
        loss, right_B = siglip_rows(video_BE, text_BE, scale, bias)
        return loss, {
            "siglip_loss": loss.detach(),
            "right": right_B.float().mean(),
            "scale": scale.detach(),
            "bias": bias.detach(),
        }


class MarginTask(DualTask):
    """A clip nearer to its sentence than to any other of this process's, by a margin: EK-100's retrieval.

    Attributes:
        adaptive: The margin is scaled by a pair's relevancy, as the paper says; the original's script does not.
    """

    def __init__(
        self,
        model: DualEncoder,
        margin: float = 0.2,
        adaptive: bool = False,
        fast: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(model, normalize=False, fast=fast, chunk=chunk)
        model.logit_scale.requires_grad_(False)  # cosines have no temperature, and DDP waits for each gradient
        self.margin, self.adaptive = margin, adaptive

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """The loss forms cosines itself."""
        video_BE, text_BE = self.embed(batch, video)
        relevancy = needed(batch, "relevancy") if self.adaptive else None
        loss = max_margin_loss(video_BE.float(), text_BE.float(), self.margin, relevancy)
        return loss, {"margin_loss": loss.detach()}
