"""Small vocabularies learnt from our own sentences, for models that need no 50,257 words.

Both cover every byte, so any text has ids, and both are the same whenever the sentences are. Id 0 is a token of its
own, ``<|pad|>``, so that padding is never a word.

    train_bpe(sentences, 512, context=32).save("bundle")  # then load_tokenizer("bundle", "gpt2", 32)
"""

from __future__ import annotations

from collections.abc import Iterable

from lavila_fast.text.clean import clean_clip
from lavila_fast.text.tokenizer import Tokenizer
from lavila_fast.text.vocabularies import train_clip_backend, train_gpt2_backend


def train_bpe(sentences: Iterable[str], vocab_size: int, context: int = 77) -> Tokenizer:
    """A byte-level tokenizer of kind ``gpt2``.

    Args:
        sentences: What to learn from.
        vocab_size: The most ids; there are fewer when the sentences have no more pairs to merge.
        context: Length that `encode` pads and cuts to.

    Returns:
        A tokenizer with begin = end = `vocab_size` - 1 and pad 0.

    Raises:
        InputError: `vocab_size` below 258.
    """
    return Tokenizer(train_gpt2_backend(sentences, vocab_size), "gpt2", context)


def train_clip_bpe(sentences: Iterable[str], vocab_size: int, context: int = 77) -> Tokenizer:
    """A tokenizer of kind ``clip``: lower case, begin < end, and the end token has the highest id of all.

    Args:
        sentences: What to learn from.
        vocab_size: The most ids; there are fewer when the sentences have no more pairs to merge.
        context: Length that `encode` pads and cuts to.

    Raises:
        InputError: `vocab_size` below 515.
    """
    return Tokenizer(train_clip_backend((clean_clip(one) for one in sentences), vocab_size), "clip", context)
