"""A T5 of some 0.2 million weights that has read the kitchen's sentences in several wordings, and seen no picture.

It stands in for the paper's T5-large, which had read the web. What it learns are pairs of sentences of all actions that
may be shown in training; it is asked by `lavila-fast rephrase`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lavila_fast.bench.paper.wordings import actions, draws, paraphrases, plain
from lavila_fast.errors import MissingExtraError

_BATCH, _RATE = 64, 3e-3
PREFIX = "paraphrase: "


def train_rephraser(folder: Path, updates: int) -> None:
    """Train one and save it as transformers does, whole or not at all.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    import torch

    try:
        from transformers import T5Config, T5ForConditionalGeneration
    except ImportError as error:
        raise MissingExtraError("transformers", "rephrase") from error
    pairs = sentence_pairs()
    words = _tokenizer([text for pair in pairs for text in pair])
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(words), decoder_start_token_id=0, dropout_rate=0.0, **shape)
    model = T5ForConditionalGeneration(config)
    _learn(model, _Ids(words, pairs), updates)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.eval().save_pretrained(part)
    words.save_pretrained(part)
    part.rename(folder)


def sentence_pairs() -> list[tuple[str, str]]:
    """What is read, and what may be said of it."""
    return [(PREFIX + plain(one), text) for one in actions("train") for text in paraphrases(one)]


def _tokenizer(texts: list[str]) -> Any:
    """Of whole words, with punctuation apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    cut = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")])
    found = dict.fromkeys(word for text in texts for word, _ in cut.pre_tokenize_str(text))
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {word: number for number, word in enumerate((*marks.values(), *found))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=marks["unk_token"]))
    backend.pre_tokenizer, backend.decoder = cut, decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **marks)


class _Ids:
    """All pairs as ids."""

    def __init__(self, words: Any, pairs: list[tuple[str, str]]) -> None:
        from lavila_fast.rephrase.seq2seq import padded

        self.read, self.mask = padded(words([text for text, _ in pairs])["input_ids"], 0)
        said, real = padded(words([text for _, text in pairs])["input_ids"], 0)
        self.said = said.masked_fill(real == 0, -100)

    def some(self, rows: Any) -> dict[str, Any]:
        return {"input_ids": self.read[rows], "attention_mask": self.mask[rows], "labels": self.said[rows]}


def _learn(model: Any, ids: _Ids, updates: int) -> None:
    import torch

    optimiser, draw = torch.optim.AdamW(model.parameters(), _RATE), draws(0, 0)
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 - update / updates)
        rows = torch.from_numpy(draw.integers(len(ids.read), size=_BATCH))
        model(**ids.some(rows)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
