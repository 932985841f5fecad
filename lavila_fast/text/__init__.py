"""Sentences and ids: `load_tokenizer` for published and bundled vocabularies, `train_bpe` for small ones of our own."""

from lavila_fast.text.tokenizer import Kind, Tokenizer, load_tokenizer
from lavila_fast.text.train import train_bpe, train_clip_bpe

__all__ = ["Kind", "Tokenizer", "load_tokenizer", "train_bpe", "train_clip_bpe"]
