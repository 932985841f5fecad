"""A sequence-to-sequence model of the transformers library as paraphraser: T5, BART, Pegasus and the like.

    model = load_paraphraser("folder/", precision="bf16")
    model.paraphrase(["The person picks up the cup."])  # [["The cup is lifted by the person.", …]]

Weights are read from safetensors alone, for other files are pickles, and no code of a model's folder is run.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavila_fast.errors import CheckpointError, InputError, MissingExtraError
from lavila_fast.generate.options import Written
from lavila_fast.rephrase.identity import folder_identity
from lavila_fast.rephrase.options import PRECISIONS, Search
from lavila_fast.rephrase.search import paraphrase_ids
from lavila_fast.shown import shown

_SAFE = ("model.safetensors", "model.safetensors.index.json")


class CachedDecoder:
    """`search.Decoder` over a model, with keys and values kept; those of the source are made once a sentence."""

    def __init__(self, model: Any, ids_BS: Tensor, mask_BS: Tensor) -> None:
        """Encode the source sentences: ids (B, S) int64 with padding, mask (B, S) of 1 and 0."""
        from transformers import DynamicCache, EncoderDecoderCache

        self.model, self.mask = model, mask_BS
        self.encoded = model.get_encoder()(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.sentences = list(range(len(ids_BS)))
        # Earlier versions, and models that were not changed, call it past_key_values.
        takes = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"

    def step(self, tokens_R: Tensor) -> Tensor:
        """See `search.Decoder`."""
        from transformers.modeling_outputs import BaseModelOutput

        given = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoded),
            "attention_mask": self.mask,
            "decoder_input_ids": tokens_R.to(self.mask.device)[:, None],
            self._cache_name: self.cache,
        }
        scores: Tensor = self.model(**given, use_cache=True).logits[:, -1].float()
        return scores

    def select(self, rows: Sequence[int]) -> None:
        """See `search.Decoder`."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.cache.self_attention_cache.reorder_cache(chosen)
        sentences = [self.sentences[row] for row in rows]
        if sentences != self.sentences:
            self.cache.cross_attention_cache.reorder_cache(chosen)
            self.encoded, self.mask, self.sentences = self.encoded[chosen], self.mask[chosen], sentences


@dataclass(frozen=True)
class Paraphraser:
    """A loaded model.

    Attributes:
        model: In eval mode.
        tokenizer: Its own.
        identity: What tells it from others, the precision included.
        search: How candidates are searched.
        batch_tokens: Most tokens of the sentences that are read together.
    """

    model: Any
    tokenizer: Any
    identity: str
    search: Search
    batch_tokens: int = 1024

    def tokens(self, sentence: str) -> list[int]:
        """What the model reads of a sentence."""
        ids: list[int] = self.tokenizer(self.search.template.replace("{}", sentence), truncation=True)["input_ids"]
        return ids

    def batches(self, sentences: Sequence[str]) -> Iterator[list[str]]:
        """Sentences of like length together, the longest first: as many as have `batch_tokens`, padded."""
        for batch in token_batches([len(self.tokens(one)) for one in sentences], self.batch_tokens):
            yield [sentences[number] for number in batch]

    def paraphrase(self, sentences: Sequence[str]) -> list[list[str]]:
        """Candidates of each sentence, the best first; all go through the model together."""
        read = [self.tokens(sentence) for sentence in sentences]
        found = search_batch(self.model, read, self.tokenizer.pad_token_id, self.search)
        return [[self._text(one.ids[1:]) for one in candidates] for candidates in found]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()


@torch.inference_mode()
def search_batch(model: Any, read: Sequence[Sequence[int]], pad: int, search: Search) -> list[list[Written]]:
    """Candidates, as tokens, of sentences that go through a model together: see `search.paraphrase_ids`."""
    decoder = CachedDecoder(model, *padded(read, pad, model.device))
    return paraphrase_ids(decoder, len(read), search, *special_tokens(model))


def token_batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of sentences of like length, the longest first: as many at a time as have `most` tokens, padded."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def padded(read: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Ids (B, S) int64 with padding behind, and a mask (B, S) int64 that is 0 there."""
    longest = max(map(len, read))
    ids = torch.tensor([[*line, *[pad] * (longest - len(line))] for line in read], device=device)
    mask = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in read], device=device)
    return ids, mask


def special_tokens(model: Any) -> tuple[int, int]:
    """The tokens that a decoder begins with, and that ends a sentence.

    Raises:
        CheckpointError: the config names none.
    """
    config = model.generation_config
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    if start is None or end is None:
        raise CheckpointError("the model's config names no decoder_start_token_id or no eos_token_id; add them to it")
    return int(start), int(end)


def load_paraphraser(
    name: str, search: Search, precision: str = "fp32", device: str = "cpu", batch_tokens: int = 1024
) -> Paraphraser:
    """Load a model.

    Args:
        name: A folder, or the name of a model on the Hub, which transformers fetches where it is not here yet.
        search: How candidates are searched.
        precision: One of `options.PRECISIONS`.
        device: Of torch.
        batch_tokens: See `Paraphraser`.

    Raises:
        CheckpointError: it is no sequence-to-sequence model, or its weights are missing, pickled or damaged.
        InputError: no such precision here.
        MissingExtraError: transformers, or bitsandbytes, is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "rephrase") from error
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if precision.startswith("bnb-") and not device.startswith("cuda"):
        raise InputError(f"--precision {precision} needs a GPU; take fp32, bf16 or int8 on {device}")
    if precision == "int8" and device != "cpu":
        raise InputError(f"--precision int8 is for the CPU; take bf16 or bnb-int8 on {device}")
    _check_folder(Path(name))
    try:
        model, tokenizer = _found(transformers, name, precision, device)
    except (CheckpointError, MissingExtraError):
        raise
    except Exception as error:  # transformers raises nearly anything
        what = shown(" ".join(str(error).split())[:300])
        raise CheckpointError(f"{name}: cannot be loaded ({what}); give a folder of a seq2seq model") from error
    return Paraphraser(model, tokenizer, f"{_identity(name, model)} {precision}", search, batch_tokens)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or len(folder.parts) > 2:
            raise CheckpointError(f"{folder}: no such folder; give one with config.json and model.safetensors")
        return
    if not any((folder / name).is_file() for name in _SAFE):
        pickled = [one.name for one in folder.glob("*.bin")]
        what = f"{pickled[0]} is a pickle, which is not loaded" if pickled else "holds no model.safetensors"
        raise CheckpointError(f"{folder}: {what}; save it with transformers' save_pretrained, which writes safetensors")


def _found(transformers: Any, name: str, precision: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer: what is here without a word to the Hub, for which transformers would wait for minutes."""
    here = _fetched(name)
    try:
        return _pretrained(transformers, here or name, precision, device)
    except OSError:  # not all of it is here
        if here is None or Path(name).is_dir():
            raise
        return _pretrained(transformers, name, precision, device)


def _fetched(name: str) -> str | None:
    """The folder in which a model of the Hub lies here; None: it does not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return name if Path(name).is_dir() else str(snapshot_download(name, local_files_only=True))
    except (OSError, HFValidationError):  # none is there, or no such name can be
        return None


def _pretrained(transformers: Any, name: str, precision: str, device: str) -> tuple[Any, Any]:
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}
    config = transformers.AutoConfig.from_pretrained(name, **safe)
    if not config.is_encoder_decoder:
        what = f"a {config.model_type} is no sequence-to-sequence model"
        raise CheckpointError(f"{name}: {what}; give one such as T5 or BART")
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **safe)
    if precision.startswith("bnb-"):
        safe["quantization_config"] = _bitsandbytes(transformers, precision)
        safe["device_map"] = device
    else:
        safe["dtype"] = torch.bfloat16 if precision == "bf16" else torch.float32
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.AutoModelForSeq2SeqLM
    model, told = kind.from_pretrained(name, use_safetensors=True, output_loading_info=True, **safe)
    if lost := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
        what = f"its weights lack {lost[0]}, or have it in another size"
        raise CheckpointError(f"{name}: {what}; give the weights of this config.json")
    model = model.eval() if "device_map" in safe else model.eval().to(device)
    return (to_int8(model) if precision == "int8" else model), tokenizer


def _bitsandbytes(transformers: Any, precision: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "bitsandbytes") from error
    if precision == "bnb-int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    half = torch.bfloat16
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=half)


def to_int8(model: Any) -> Any:
    """Swap the linear layers of encoder and decoder for PyTorch's INT8 ones, in place; the last one stays.

    Weights have a scale an output, activations one a batch, as they come.

    Raises:
        InputError: this PyTorch has no such layers.
    """
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "lm_head" not in name]
    try:
        import torch.ao.quantization as quantization
    except ImportError as error:
        raise InputError("--precision int8: this PyTorch has no dynamic quantization; take bf16") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        how = dict.fromkeys(names, quantization.per_channel_dynamic_qconfig)
        quantize: Any = quantization.quantize_dynamic
        return quantize(model, how, torch.qint8, inplace=True)


def _identity(name: str, model: Any) -> str:
    if Path(name).is_dir():
        return folder_identity(Path(name))
    return f"{name} {getattr(model.config, '_commit_hash', None)}"
