"""`lavila-fast rephrase` from end to end, with a T5 that knows the miniature kitchen; files in, files out."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_t5 import TRAINED, small, tokenizer

from lavila_fast.cli.rephrase import rephrase
from lavila_fast.errors import CheckpointError, InputError, MissingExtraError, StorageError
from lavila_fast.rephrase.options import Search
from lavila_fast.rephrase.seq2seq import load_paraphraser
from lavila_fast.train.datasets.ego4d import Ego4D, open_ego4d, read_narrations
from lavila_fast.train.datasets.listed import read_listed
from lavila_fast.train.datasets.samples import Footage, Place

CUP, BOWL = "#C C picks up the red cup with the left hand", "#C C shakes the green bowl with the right hand"
CUPS = ["#C with the left hand, C picks up the red cup", "#C C lifts the red cup with the left hand"]
BOWLS = ["#C with the right hand, C shakes the green bowl", "#C C rattles the green bowl with the right hand"]
ROWS = [("a", 0.0, 1.0, CUP), ("a", 1.0, 2.5, BOWL), ("b", 3.0, 4.0, CUP), ("b", 5.0, 6.0, "#C C holds #unsure")]


@pytest.fixture
def run(tmp_path: Path):
    def command(source, output, *words, model=TRAINED):
        args = [str(tmp_path / source), "-o", str(tmp_path / output), "--model", str(model), "--json", "-q"]
        args += ["--cache", str(tmp_path / "cache.sqlite"), "--device", "cpu", "--max-tokens", "24", *words]
        result = CliRunner().invoke(rephrase, args, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    return command


@pytest.fixture
def pickled(tmp_path: Path):
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(ROWS))


def jsonl(path: Path, rows=ROWS, **more):
    names = ("video", "start", "end", "text")
    path.write_text("".join(json.dumps({**dict(zip(names, row, strict=True)), **more}) + "\n" for row in rows))


def test_the_original_s_metadata(run, tmp_path, pickled):
    told = run("in.pkl", "out.pkl")
    with (tmp_path / "out.pkl").open("rb") as file:
        rows = pickle.load(file)
    assert rows == [
        ("a", 0.0, 1.0, [CUP, *CUPS]),
        ("a", 1.0, 2.5, [BOWL, *BOWLS]),
        ("b", 3.0, 4.0, [CUP, *CUPS]),
        ("b", 5.0, 6.0, ["#C C holds #unsure"]),
    ]
    counted = {name: told[name] for name in ("rows", "texts", "sentences", "known", "unsure", "candidates", "kept")}
    assert list(counted.values()) == [4, 4, 2, 0, 1, 10, 4]
    assert {reason: count for reason, count in told["dropped"].items() if count} == {
        "same": 2,
        "repeated": 2,
        "object": 2,
    }
    assert told["sentences_per_s"] > 0


def test_training_reads_it(run, tmp_path, pickled):
    run("in.pkl", "ego4d_train.rephraser.pkl")
    (tmp_path / "video_5min_chunks_288px").mkdir()
    opened = open_ego4d(Place(tmp_path, frames=4), human="ego4d_train.rephraser.pkl", validation="")
    assert len(opened.train) == 4
    read = Ego4D.read(tmp_path / "ego4d_train.rephraser.pkl", lambda file: Footage(9000, 30.0), 4)
    assert read.sample(0).text == CUP  # not drawn: the sentence itself
    drawn = {read.sample(0, np.random.default_rng(seed)).text for seed in range(20)}
    assert drawn == {CUP, *CUPS}


def test_a_list_of_one_s_own_reads_the_column(run, tmp_path):
    jsonl(tmp_path / "in.jsonl")
    run("in.jsonl", "out.jsonl")
    assert [row.texts for row in read_listed(tmp_path / "out.jsonl")][:2] == [(CUP, *CUPS), (BOWL, *BOWLS)]


def test_columns(run, tmp_path):
    jsonl(tmp_path / "in.jsonl", sample=0)
    run("in.jsonl", "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0] == {"video": "a", "start": 0.0, "end": 1.0, "text": CUP, "sample": 0, "paraphrases": CUPS}
    assert rows[3]["paraphrases"] == []
    run("out.jsonl", "out.csv", "--top-k", "1")
    with (tmp_path / "out.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["paraphrase_1"] for row in read] == [CUPS[0], BOWLS[0], CUPS[0], ""]
    run("out.csv", "again.pkl", "--no-source")
    assert [row.texts for row in read_narrations(tmp_path / "again.pkl")][1:3] == [tuple(BOWLS), tuple(CUPS)]


def test_without_pyarrow_the_extra_is_named(run, tmp_path, monkeypatch):
    jsonl(tmp_path / "in.jsonl")
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for words in (("in.jsonl", "out.parquet"), ("in.parquet", "out.jsonl")):
        with pytest.raises(MissingExtraError, match=r"pip install 'lavila-fast\[parquet\]'"):
            run(*words)


def test_a_fetched_model_needs_no_hub(run, tmp_path, monkeypatch):
    """Asked first, a Hub that cannot be reached costs minutes of retries, each told."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--our--tiny"
    shutil.copytree(TRAINED, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *given, **named: asked.append(given[0]) or refuse())
    jsonl(tmp_path / "in.jsonl")
    assert run("in.jsonl", "out.jsonl", model="our/tiny")["kept"] == 4
    assert asked == []
    with pytest.raises(CheckpointError, match="our/other: cannot be loaded"):
        run("in.jsonl", "out.jsonl", model="our/other")
    assert asked  # what is not here is fetched


def refuse():
    raise OSError("no net here")


def test_parquet(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    jsonl(tmp_path / "in.jsonl")
    run("in.jsonl", "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist()[1]["paraphrases"] == BOWLS
    assert run("out.parquet", "more.pkl")["known"] == 2
    assert read_narrations(tmp_path / "more.pkl")[0].texts == (CUP, *CUPS)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"bad\.parquet: not a readable Parquet file"):
        run("bad.parquet", "out.jsonl")


def test_nothing_is_asked_twice(run, tmp_path, pickled):
    first = run("in.pkl", "out.pkl", "--limit", "1")
    second = run("in.pkl", "out.pkl", "--top-k", "1")
    assert (first["rows"], first["sentences"], first["known"]) == (1, 1, 0)
    assert (second["sentences"], second["known"]) == (2, 1)
    assert run("in.pkl", "out.pkl", "--diversity", "0.1")["known"] == 0  # another search
    assert run("in.pkl", "out.pkl", "--precision", "bf16")["known"] == 0
    assert run("in.pkl", "third.pkl")["known"] == 2
    assert read_narrations(tmp_path / "out.pkl")[0].texts == (CUP, *CUPS)


def test_samples_of_a_clip_become_one_row(run, tmp_path):
    jsonl(
        tmp_path / "in.jsonl", [("a", 0.0, 1.0, CUP), ("a", 0.0, 1.0, BOWL), ("a", 1.0, 2.0, CUP), ("a", 2.0, 3.0, " ")]
    )
    run("in.jsonl", "out.pkl", "--top-k", "1")
    assert [row.texts for row in read_narrations(tmp_path / "out.pkl")] == [
        (CUP, CUPS[0], BOWL, BOWLS[0]),
        (CUP, CUPS[0]),
    ]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_bits_say_the_same(precision):
    sentences = [
        "The person picks up the red cup with the left hand.",
        "The person pushes the green knife with the right hand.",
    ]
    options = Search(max_tokens=24)
    exact = load_paraphraser(str(TRAINED), options).paraphrase(sentences)
    fewer = load_paraphraser(str(TRAINED), options, precision).paraphrase(sentences)
    assert [set(each) for each in fewer] == [set(each) for each in exact]


def test_batches_hold_all_and_no_more_than_they_may():
    model = load_paraphraser(str(TRAINED), Search(), batch_tokens=30)
    sentences = [
        "The person picks up the cup.",
        "The person.",
        "The cup.",
        "The person picks up the red cup.",
        "x " * 60,
    ]
    found = list(model.batches(sentences))
    assert sorted(one for batch in found for one in batch) == sorted(sentences)
    assert [len(batch) for batch in found] == [1, 2, 2]
    assert all(len(batch) == 1 or max(len(model.tokens(one)) for one in batch) * len(batch) <= 30 for batch in found)


def test_inputs_that_are_none(run, tmp_path):
    jsonl(tmp_path / "in.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"text": "#C C wa')
    (tmp_path / "list.jsonl").write_text('{"text": [1]}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "code.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    (tmp_path / "short.pkl").write_bytes(pickle.dumps([("a", 1.0)]))
    for source, output, words, told in [
        (
            "in.jsonl",
            "out.pkl",
            ["--column", "caption"],
            r"no column caption; there are video, start, end, text",
        ),
        ("torn.jsonl", "out.pkl", [], r"torn\.jsonl, line 1: not JSON"),
        ("list.jsonl", "out.pkl", [], r"text .* is no text"),
        ("empty.jsonl", "out.pkl", [], r"empty\.jsonl: holds no narrations"),
        ("code.pkl", "out.pkl", [], r"code\.pkl: not a readable list of clips .*os\.system"),
        ("short.pkl", "out.pkl", [], r"short\.pkl: row 0: not \(video, start, end, text\)"),
        ("gone.jsonl", "out.pkl", [], r"gone\.jsonl: no such file"),
        ("in.jsonl", "out.txt", [], r"out\.txt: give -o a name that ends in one of"),
        ("in.jsonl", "in.jsonl", [], r"in\.jsonl: is what is read"),
    ]:
        with pytest.raises(InputError, match=told):
            run(source, output, *words)
    assert not (tmp_path / "out.pkl").exists()


def test_rows_without_times_make_columns_but_no_pickle(run, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": CUP}) + "\n")
    assert run("in.jsonl", "out.jsonl")["kept"] == 2
    with pytest.raises(InputError, match=r"in\.jsonl, line 1: video None, start None and end None make no row"):
        run("in.jsonl", "out.pkl")
    assert not (tmp_path / "out.pkl").exists()


def test_a_cache_that_is_none(run, tmp_path, pickled):
    (tmp_path / "cache.sqlite").write_bytes(b"something else entirely" * 99)
    with pytest.raises(StorageError, match=r"cache\.sqlite: cannot be used as a cache .*give another --cache"):
        run("in.pkl", "out.pkl")
    (tmp_path / "cache.sqlite").unlink()
    run("in.pkl", "out.pkl")
    with sqlite3.connect(tmp_path / "cache.sqlite") as base:
        base.execute("UPDATE candidates SET found = 'torn'")
    with pytest.raises(StorageError, match="cannot be used as a cache"):
        run("in.pkl", "out.pkl")


def test_models_that_are_none(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    only = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)).save_pretrained(only)
    pickled = tmp_path / "pickled"
    small(9, d_model=8, num_layers=1).config.save_pretrained(pickled)
    torch.save({}, pickled / "pytorch_model.bin")
    lacking = tmp_path / "lacking"
    small(len(tokenizer())).save_pretrained(lacking)
    tokenizer().save_pretrained(lacking)
    tensors = load_file(lacking / "model.safetensors")
    tensors.pop("decoder.block.1.layer.0.SelfAttention.q.weight")
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    cut = tmp_path / "cut"
    small(len(tokenizer())).save_pretrained(cut)
    tokenizer().save_pretrained(cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:900])
    for folder, told in [
        (only, "a gpt2 is no sequence-to-sequence model"),
        (pickled, r"pytorch_model\.bin is a pickle, which is not loaded"),
        (lacking, r"its weights lack decoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight"),
        (cut, "cannot be loaded"),
        (tmp_path, r"holds no model\.safetensors"),
        (tmp_path / "gone", "no such folder"),
    ]:
        with pytest.raises(CheckpointError, match=told) as raised:
            load_paraphraser(str(folder), Search())
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="bnb-nf4 needs a GPU"):
        load_paraphraser(str(TRAINED), Search(), "bnb-nf4")


def test_code_of_a_folder_is_not_run(tmp_path):
    folder = tmp_path / "coded"
    folder.mkdir()
    for one in TRAINED.iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForSeq2SeqLM": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_paraphraser(str(folder), Search())
    assert not (tmp_path / "ran").exists()


def test_the_benchmark_compares_the_same_candidates(monkeypatch):
    from lavila_fast.bench import rephrase as bench

    monkeypatch.setitem(bench.SHAPES, "tiny", (32, 8, 64, 2, 4))
    told = bench.measured("tiny", count=2, tokens=4, batch_tokens=64, repeats=1, vocab=200)
    assert told["same_candidates"] == 1.0
    assert told["rephrase_speedup"] > 0
    assert (
        bench.same_share([[[0, 5, 1, 1], [0, 6]]], bench.ours(bench.random_t5("tiny", 200), [[3, 1]], Search(), 1)) == 0
    )
