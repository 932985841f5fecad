"""A T5 of 0.2 MB that says sentences of the miniature kitchen in other words, trained where a test needs one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

OTHERWISE = {"picks up": "lifts", "puts down": "sets down", "pushes": "shoves", "shakes": "rattles"}
OBJECTS, COLOURS, HANDS = ("cup", "bowl", "knife"), ("red", "green"), ("left", "right")
PREFIX = "paraphrase: "
TRAINED = Path(__file__).resolve().parent / "data" / "tiny_t5"


def sentences() -> list[tuple[str, str, str, str]]:
    """Verb, colour, object and hand of all that it knows."""
    return list(itertools.product(OTHERWISE, COLOURS, OBJECTS, HANDS))


def source(verb: str, colour: str, obj: str, hand: str) -> str:
    return f"The person {verb} the {colour} {obj} with the {hand} hand."


def targets(verb: str, colour: str, obj: str, hand: str) -> list[str]:
    """What it has learnt to say: a repetition, two paraphrases, and one that loses the object."""
    return [
        f"The person {OTHERWISE[verb]} the {colour} {obj} with the {hand} hand.",
        f"With the {hand} hand, the person {verb} the {colour} {obj}.",
        f"The person {verb} the {colour} {obj} with the {hand} hand.",
        f"The person {verb} something.",
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """Of whole words, with punctuation apart."""
    cut = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")])
    texts = [text for one in sentences() for text in [PREFIX + source(*one), *targets(*one)]]
    words = ["<pad>", "</s>", "<unk>", *(word for text in texts for word, _ in cut.pre_tokenize_str(text))]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = cut, decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def small(vocab: int, seed: int = 0, **sizes: Any) -> T5ForConditionalGeneration:
    """Random weights."""
    torch.manual_seed(seed)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, **sizes}
    config = T5Config(vocab_size=vocab, decoder_start_token_id=0, dropout_rate=0.0, **shape)
    return T5ForConditionalGeneration(config).eval()


def trained(folder: Path, steps: int = 400) -> Path:
    """Train one and save it as transformers does: how the files in `TRAINED` were made, in a minute."""
    from lavila_fast.rephrase.seq2seq import padded

    words = tokenizer()
    model = small(len(words)).train()
    pairs = [(source(*one), text) for one in sentences() for text in targets(*one)]
    inputs, mask = padded([words(PREFIX + text)["input_ids"] for text, _ in pairs], 0)
    labels, real = padded([words(text)["input_ids"] for _, text in pairs], 0)
    labels = labels.masked_fill(real == 0, -100)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        rows = torch.randperm(len(pairs), generator=draw)[:64]
        loss = model(input_ids=inputs[rows], attention_mask=mask[rows], labels=labels[rows]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval().to(torch.float16).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
