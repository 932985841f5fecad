"""Group beam search over an encoder-decoder: against a plain one without cache, and against transformers' own."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tiny_t5 import small

from lavila_fast.errors import InputError, NotFiniteError
from lavila_fast.rephrase.options import Search
from lavila_fast.rephrase.search import best_words, paraphrase_ids
from lavila_fast.rephrase.seq2seq import CachedDecoder, padded, special_tokens

VOCAB, END = 41, 1


@pytest.fixture(scope="module")
def model():
    """Random, with scores far apart and an end that comes now and then."""
    model = small(VOCAB)
    torch.manual_seed(12)
    model.lm_head.weight.data = torch.randn(VOCAB, 32) * 0.35
    model.lm_head.weight.data[END] *= 2.5
    model.lm_head.weight.data[0] = 0  # padding
    return model


@pytest.fixture(scope="module")
def read():
    draw = torch.Generator().manual_seed(0)
    return [[*torch.randint(3, VOCAB, (length,), generator=draw).tolist(), END] for length in (4, 9, 6, 4)]


@torch.inference_mode()
def found(model, read, options):
    ids, mask = padded(read, 0)
    return paraphrase_ids(CachedDecoder(model, ids, mask), len(read), options, *special_tokens(model))


@torch.inference_mode()
def plain(model, read, options):
    """As the rules are told: a sentence alone, all words of each beam, everything computed anew at each word."""
    size = options.beams // options.groups
    groups = [[(0.0, [0])] for _ in range(options.groups)]
    ended = [[] for _ in groups]
    done = [False] * len(groups)
    while not all(done) and len(next(g for g, d in zip(groups, done, strict=True) if not d)[0][1]) < options.max_tokens:
        chosen = []
        for number, beams in enumerate(groups):
            if done[number]:
                continue
            going = []
            for score, ids in beams:
                given = torch.tensor([read]), torch.tensor([ids])
                line = model(input_ids=given[0], decoder_input_ids=given[1]).logits[0, -1].double().log_softmax(0)
                for word in range(VOCAB):
                    lowered = line[word].item() - options.diversity * chosen.count(word)
                    going.append((score + lowered, [*ids, word]))
            going.sort(key=lambda one: -one[0])
            groups[number] = []
            for rank, (score, ids) in enumerate(going[: 2 * size]):
                if ids[-1] == END and rank < size:
                    ended[number].append((score / (len(ids) - 1), ids))
                if ids[-1] != END and len(groups[number]) < size:
                    groups[number].append((score, ids))
            ended[number] = sorted(ended[number], key=lambda one: -one[0])[:size]
            done[number] = len(ended[number]) == size
            chosen += [ids[-1] for _, ids in groups[number]]
    for number, beams in enumerate(groups):
        if not done[number]:
            ended[number] += [(score / (len(ids) - 1), ids) for score, ids in beams]
            ended[number] = sorted(ended[number], key=lambda one: -one[0])[:size]
    return sorted((one for group in ended for one in group), key=lambda one: -one[0])[: options.samples]


@pytest.mark.parametrize(
    ("beams", "groups", "diversity", "samples"), [(4, 4, 0.7, 4), (4, 2, 1.5, 3), (3, 1, 0.0, 3), (6, 3, 0.3, 6)]
)
def test_groups_choose_as_the_plain_search_does(model, read, beams, groups, diversity, samples):
    options = Search(samples, beams, groups, diversity, max_tokens=8)
    for sentence, ours in zip(read, found(model, read, options), strict=True):
        theirs = plain(model, sentence, options)
        assert [list(one.ids) for one in ours] == [ids for _, ids in theirs]
        assert [one.score for one in ours] == pytest.approx([score for score, _ in theirs], abs=2e-5)


def test_some_sentences_end_and_some_do_not(model, read):
    """What is compared above holds all that can happen."""
    every = [one for each in found(model, read, Search(4, 4, 4, max_tokens=8)) for one in each]
    assert {one.ids[-1] == END for one in every} == {True, False}
    assert len({len(one.ids) for one in every if one.ids[-1] == END}) > 1


def test_one_group_is_transformers_beam_search(model, read):
    options = Search(4, 4, 1, max_tokens=10)
    how = {"num_beams": 4, "num_return_sequences": 4, "max_length": 10, "early_stopping": True, "do_sample": False}
    for sentence, ours in zip(read, found(model, read, options), strict=True):
        theirs = model.generate(
            input_ids=torch.tensor([sentence]), **how, return_dict_in_generate=True, output_scores=True
        )
        # What stands behind the end is padding.
        kept = [line[: line.index(END) + 1] if END in line else line for line in theirs.sequences.tolist()]
        assert [list(one.ids) for one in ours] == kept
        assert [one.score for one in ours] == pytest.approx(theirs.sequences_scores.tolist(), abs=2e-5)


def test_a_penalty_makes_groups_differ(model, read):
    alike = found(model, read, Search(4, 4, 4, 0.0, max_tokens=8))
    apart = found(model, read, Search(4, 4, 4, 3.0, max_tokens=8))
    assert all(len({one.ids for one in each}) == 1 for each in alike)
    assert all(len({one.ids for one in each}) == 4 for each in apart)


def test_the_encoder_and_the_first_word_are_computed_once_a_sentence(model, read):
    rows = []
    ids, mask = padded(read, 0)
    with torch.inference_mode():
        decoder = CachedDecoder(model, ids, mask)
        step = decoder.step
        decoder.step = lambda tokens: rows.append(len(tokens)) or step(tokens)
        paraphrase_ids(decoder, len(read), Search(4, 4, 4, max_tokens=8), *special_tokens(model))
    assert rows[:2] == [4, 16]
    assert rows[-1] < 16  # groups that are done are gone


def test_a_decoder_of_more_layers_than_the_encoder(read):
    deep = small(VOCAB, num_layers=1, num_decoder_layers=3)
    (ours,) = found(deep, read[:1], Search(2, 2, 1, max_tokens=5))
    assert [list(one.ids) for one in ours] == [ids for _, ids in plain(deep, read[0], Search(2, 2, 1, max_tokens=5))]


def test_a_bart_is_searched_like_a_t5(read):
    from transformers import BartConfig, BartForConditionalGeneration

    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": END, "decoder_start_token_id": 0}
    torch.manual_seed(1)
    sizes = {
        "d_model": 16,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
        "init_std": 0.5,
    }
    bart = BartForConditionalGeneration(BartConfig(vocab_size=VOCAB, **layers, **ids, **sizes)).eval()
    options = Search(3, 4, 2, 0.5, max_tokens=6)
    for sentence, ours in zip(read[:2], found(bart, read[:2], options), strict=True):
        assert [list(one.ids) for one in ours] == [ids for _, ids in plain(bart, sentence, options)]


def test_scores_that_are_no_numbers():
    with pytest.raises(NotFiniteError, match="not all finite"):
        best_words(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), 1)
    assert best_words(torch.tensor([[-math.inf, 0.0]]), 1)[0].ids == [1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"beams": 5, "groups": 2}, "--beams 5 must be a positive multiple of --groups 2"),
        ({"samples": 6}, "--samples 6: a search over 5 --beams has 1 to 5"),
        ({"max_tokens": 1}, "--max-tokens must be at least 2"),
        ({"diversity": math.nan}, "--diversity at least 0"),
        ({"template": "paraphrase"}, "write {} once"),
    ],
)
def test_options_that_do_not_fit(given, told):
    with pytest.raises(InputError, match=told):
        Search(**given)
