"""Published files that tokenizers are made of, a row each, and which of them a model needs."""

from __future__ import annotations

from dataclasses import dataclass

from lavila_fast.config import ClipTextConfig, DualEncoderConfig, ModelConfig, NarratorConfig
from lavila_fast.presets.variants import CLIP_BASE, DISTILBERT, GPT2


@dataclass(frozen=True)
class VocabularyFile:
    """A published file a tokenizer is made of, under the name by which a folder of them is recognised."""

    kind: str
    name: str
    url: str
    sha256: str

    @property
    def relative(self) -> str:
        """Path below the cache or the folder that `pull --dir` names."""
        return f"tokenizers/{self.kind}/{self.name}"


_GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_CLIP_FILES = "https://raw.githubusercontent.com/openai/CLIP/d05afc436d78f1c48dc0dbf8e5980a9d471f35f6/clip/"
_BERT_FILES = "https://huggingface.co/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594/"
_VOCABULARY_FILES = (
    VocabularyFile(
        "gpt2",
        "vocab.json",
        _GPT2_FILES + "encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    VocabularyFile(
        "gpt2",
        "merges.txt",
        _GPT2_FILES + "vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    VocabularyFile(
        "clip",
        "bpe_simple_vocab_16e6.txt.gz",
        _CLIP_FILES + "bpe_simple_vocab_16e6.txt.gz",
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    ),
    VocabularyFile(  # DistilBERT uncased has BERT's vocabulary
        "wordpiece",
        "vocab.txt",
        _BERT_FILES + "vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
)


def tokenizer_kind(config: ModelConfig) -> str | None:
    """``gpt2``, ``clip`` or ``wordpiece``; None for a classifier, which reads no text."""
    if isinstance(config, NarratorConfig):
        return "gpt2"
    if isinstance(config, DualEncoderConfig):
        return "clip" if isinstance(config.text, ClipTextConfig) else "wordpiece"
    return None


def vocabulary_files(config: ModelConfig) -> tuple[VocabularyFile, ...]:
    """The published files of a model's tokenizer; none when its vocabulary is not a published one."""
    if getattr(getattr(config, "text", None), "vocab", None) not in (GPT2.vocab, CLIP_BASE.vocab, DISTILBERT.vocab):
        return ()
    return files_of_tokenizer(tokenizer_kind(config))


def files_of_tokenizer(kind: str | None) -> tuple[VocabularyFile, ...]:
    """The published files of a tokenizer, by its kind."""
    return tuple(row for row in _VOCABULARY_FILES if row.kind == kind)
