"""Video classifiers fine-tuned from a dual encoder's video tower: one linear head, or one each for verb, noun, action.

Parameter names are those of the released checkpoints: ``fc_cls.weight`` of one head, ``fc_cls.0.weight`` of several.
"""

from __future__ import annotations

from torch import Tensor, nn

from lavila_fast.config import ClassifierConfig
from lavila_fast.models.timesformer import TimeSformer


class Classifier(nn.Module):
    """A TimeSformer and linear heads on its CLS token.

    Args:
        config: Sizes; `config.multi_head` decides what `forward` returns.
        dropout: Probability of dropping a feature before the heads, in training.
    """

    def __init__(self, config: ClassifierConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.visual = TimeSformer(config.vision)
        self.dropout = nn.Dropout(dropout)
        heads = [nn.Linear(config.vision.dim, classes) for classes in config.num_classes]
        self.fc_cls: nn.Module = nn.ModuleList(heads) if config.multi_head else heads[0]

    def forward(self, video: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of normalised float32 video (B, 3, T, H, W): (B, classes), or a tuple of them with several heads."""
        feature: Tensor = self.visual(video)
        if isinstance(self.fc_cls, nn.ModuleList):
            return tuple(head(self.dropout(feature)) for head in self.fc_cls)  # each has its own features dropped
        out: Tensor = self.fc_cls(self.dropout(feature))
        return out
