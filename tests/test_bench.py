"""The benchmark's sums: operations against PyTorch's counter, percentiles against numpy, lengths, and whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import LIMIT, config, tasks, videos
from tiny import narrator as tiny_narrator

from lavila_fast.bench import flops
from lavila_fast.bench.controlled import Controlled, Watched, draw_lengths, narrate_videos
from lavila_fast.bench.peak import gemm_peak
from lavila_fast.bench.run import Setting, Subject, measure_model
from lavila_fast.bench.timing import Piece, in_subprocess, in_turns, machine, medians, peak_rss, percentiles, stamp
from lavila_fast.cli.bench import bench as command
from lavila_fast.cli.main import run
from lavila_fast.config import GPT2Config, NarratorConfig, VisionConfig
from lavila_fast.errors import InputError
from lavila_fast.generate.options import Options
from lavila_fast.generate.scheduler import write_samples

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from lavila_fast.bench import engine_figures as figures  # noqa: E402  # these need torch
from lavila_fast.bench.contestants import CONTESTANTS, PREFIXES, Contest, TimedRun  # noqa: E402
from lavila_fast.bench.engines import main as engines_command  # noqa: E402
from lavila_fast.bench.report import engines_table  # noqa: E402

ODD = NarratorConfig(
    VisionConfig(img=48, patch=16, dim=64, depth=2, heads=4, frames=3),
    GPT2Config(n_embd=96, n_layer=4, n_head=3, vocab=301, n_positions=64, freq=3),
    queries=7,
    pool_heads=2,
    max_tokens=30,
)


@pytest.fixture(autouse=True, scope="module")
def small_products():
    """A peak is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lavila_fast.bench.peak.GEMM_SIZES", ((64, 256, 256), (256, 256, 256)))
        yield


def counted(work):
    """Operations that PyTorch sees, attention taken apart into its products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def odd_model():
    from lavila_fast.models.narrator import NarratorModel

    return NarratorModel(ODD).eval()


def test_a_texts_operations_are_those_pytorch_counts():
    """Of a layer that is not the last; PyTorch counts what the causal mask leaves out, too."""
    from lavila_fast.models.text_towers import ClipBlock

    width, tokens = 24, 7
    layer = flops.embed_text(width, 3, tokens) - flops.embed_text(width, 2, tokens)
    masked = 4 * width * tokens * (tokens - 1) // 2
    assert layer + masked == counted(lambda: ClipBlock(width, 2).eval()(torch.zeros(1, tokens, width)))
    one = flops.embed_text(width, 2, 1)
    assert one == 2 * flops.embed_text(width, 1, 1)  # the last layer spares nothing of a single token


def test_encoder_operations_are_those_pytorch_counts(odd_model):
    video = torch.zeros(1, 3, 3, 48, 48)
    assert flops.timesformer(ODD.vision) == counted(lambda: odd_model.visual.forward_features(video))
    assert flops.timesformer(ODD.vision, 2) == counted(lambda: odd_model.visual.forward_features(video[:, :, :2]))
    assert flops.embed_video(ODD.vision) == counted(lambda: odd_model.visual(video))
    folded = (
        2 * ODD.queries * ODD.text.n_embd * ODD.pool_heads * 64
    )  # the constant queries' projection, kept in PyTorch
    seen = counted(lambda: odd_model.visual_tokens(video))
    assert flops.timesformer(ODD.vision) + flops.pool(ODD) == seen - folded
    tokens = torch.zeros(1, ODD.queries, ODD.text.n_embd)
    assert flops.cross_keys_values(ODD) == counted(lambda: odd_model.text_decoder.keys_values(tokens))
    assert flops.encode_clip(ODD) == seen - folded + flops.cross_keys_values(ODD)


@pytest.mark.parametrize("past", [1, 9])
def test_step_operations_are_those_pytorch_counts(odd_model, past):
    """A step's own key and value are no matrix product in PyTorch; they count here."""
    text, rows = ODD.text, 5
    size = text.n_embd // text.n_head
    caches = [torch.zeros(rows, text.n_head, past, size) for _ in range(2 * text.n_layer)]
    seen = torch.zeros(rows, ODD.queries, text.n_embd)
    cross = [t for pair in odd_model.text_decoder.keys_values(seen) for t in pair]
    ids, lengths, grid = torch.zeros(rows, dtype=int), torch.full((rows,), past), torch.arange(rows)[:, None]
    found = counted(lambda: odd_model.text_decoder.step(ids, lengths, grid, torch.arange(rows), caches, cross))
    own = text.n_layer * 4 * text.n_embd
    assert rows * (flops.step(ODD, past) - own) == found


def test_a_sentence_is_the_sum_of_its_steps():
    assert flops.decode(ODD, 1, 10) == flops.step(ODD, 0)
    assert flops.decode(ODD, 3, 2) == flops.step(ODD, 0) + 2 * (flops.step(ODD, 1) + flops.step(ODD, 2))


def test_uncached_operations_are_those_pytorch_counts(odd_model):
    tokens = torch.zeros(1, ODD.queries, ODD.text.n_embd)
    steps = [counted(lambda n=n: odd_model.logits(tokens, torch.zeros(1, n, dtype=int))) for n in range(1, 5)]
    assert flops.uncached_decode(ODD, 4, 3) == 3 * sum(steps)


def test_operations_of_the_real_size_are_known():
    """The figures that the design was made with: 0.18 TFLOP a clip, 0.39 GFLOP a token."""
    base = NarratorConfig()
    assert flops.encode_clip(base) == pytest.approx(0.18e12, rel=0.1)
    assert flops.step(base, 12) == pytest.approx(0.39e9, rel=0.1)


def test_percentiles_are_numpys():
    values = np.random.default_rng(0).exponential(size=101)
    found = percentiles(values.tolist())
    ordered = np.sort(values)
    assert (found["p50"], found["p90"], found["p99"]) == tuple(ordered[[50, 90, 99]])
    assert found["mean"] == pytest.approx(values.sum() / 101)
    assert found["count"] == 101


def test_pieces_take_turns():
    log = []
    work = {"a": Piece(lambda: log.append("a"), 2), "b": Piece(lambda: log.append("b"), 3, lambda: log.append("w"))}
    times = in_turns(work)
    assert "".join(log) == "aw" + "ab" + "ab" + "b"
    assert [len(times[name]) for name in "ab"] == [2, 3]
    assert list(medians({"x": [3.0, 1.0, 2.0], "none": []}).items()) == [("x", 2.0)]


def test_no_turn_begins_that_would_end_after_the_deadline():
    count = []
    in_turns({"a": Piece(lambda: (time.sleep(0.05), count.append(1)), 50)}, time.monotonic() + 0.3)
    assert 2 <= len(count) < 10


@pytest.mark.parametrize(("count", "mean"), [(240, 12), (10, 5), (7, 1), (31, 40), (160, 76)])
def test_lengths_have_exactly_the_mean_that_was_asked_for(count, mean):
    lengths = draw_lengths(count, mean, 76)
    assert lengths.mean() == mean
    assert lengths.min() >= min(5, mean)
    assert lengths.max() <= 76
    assert (lengths == draw_lengths(count, mean, 76)).all()
    if mean == 12:  # many short ones, a few long ones
        assert np.median(lengths) < 12
        assert lengths.max() > 30


@pytest.mark.parametrize("mean", [0, 77])
def test_lengths_beyond_the_model_are_refused(mean):
    with pytest.raises(InputError, match="between 1 and the model's 76"):
        draw_lengths(10, mean, 76)


def test_sentences_get_the_lengths_they_were_given(tiny_engines):
    """In the order in which clips join, whatever the engine would have said."""
    runtime = tiny_engines["onnxruntime"]
    lengths = draw_lengths(6 * 3, 7, LIMIT - 1)
    said = {}

    class Noting(Controlled):
        def select(self, state, rows):
            super().select(state, rows)
            assert (state.age < state.goal).all()

    coat = Noting(Watched(runtime), lengths.tolist())
    for owner, written in write_samples(coat, tasks(coat, videos(6)), Options(samples=3), 4):
        said[owner] = [len(one.ids) - 1 for one in written]
    assert [said[i] for i in range(6)] == lengths.reshape(6, 3).tolist()
    assert {"encode", "join", "sample", "step", "select"} <= set(coat.runtime.spent)
    assert len(coat.runtime.spent["encode"]) == 6


def test_narrate_counts_clips_and_tokens(tiny_engines):
    runtime = Controlled(tiny_engines["torch"], [4] * 4)
    assert narrate_videos(runtime, iter(videos(2)[:, None]), Options(samples=2), 2) == (2, 16)


def test_machine_stamp_names_what_matters():
    found = machine()
    assert {"cpu", "isa", "load_average", "python", "numpy", "onnxruntime", "torch", "date"} <= set(found)
    assert found["torch"] == torch.__version__
    assert found["cpu"] in stamp(found)


def test_peak_memory_is_of_the_other_process():
    """A process that fills 200 MB says so, whatever this one holds."""
    before = peak_rss()
    code = "import numpy; from lavila_fast.bench.timing import peak_rss; a = numpy.ones(25_000_000); print(peak_rss())"
    filled = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert 200e6 < filled < 400e6
    block = np.ones(10_000_000)
    assert peak_rss() >= before
    assert peak_rss() >= block.nbytes


def test_gemm_peak_is_what_a_product_takes():
    found = gemm_peak("fp32", 1, 3)
    a = torch.randn(256, 256)
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    rate = 20 * 2 * 256**3 / (time.perf_counter() - start) / 1e9
    assert rate / 5 < found["gflops"] < rate * 20
    assert found["by"] in ("torch.mm", "onnxruntime")
    assert gemm_peak("int8", 1, 3)["gflops"] > 1


@pytest.fixture(scope="module")
def result(tiny_bundle):
    setting = Setting(str(tiny_bundle), threads=1, batches=(1, 3), samples=4, tokens=6, repeats=3)
    return measure_model(setting, "lavila-fast bench tiny", lambda _: None)


def test_bench_figures_fit_together(result):
    assert {"latency", "throughput", "peaks", "share", "file", "memory", "machine", "engine", "command"} <= set(result)
    latency = result["latency"]
    for row in latency.values():
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
    assert latency["encode"]["p50"] < latency["first_token"]["p50"] < latency["clip"]["p50"]
    for row in result["throughput"]:
        assert row["tokens_per_s"] == pytest.approx(row["clips_per_s"] * 4 * 6)
        spent = dict(row["seconds_a_clip"])
        assert spent.pop("all") * row["clips_per_s"] == pytest.approx(1)
        assert 0 < sum(spent.values()) < 1 / row["clips_per_s"]
    assert result["memory"]["peak_bytes"] >= result["memory"]["open_bytes"] > 2e7


def test_bench_shares_are_those_of_the_seconds(result):
    best = max(result["throughput"], key=lambda row: row["clips_per_s"])
    share, spent = result["share"], best["seconds_a_clip"]
    peak = result["peaks"]["fp32"]["gflops"]
    assert share["encoder"]["gflop"] == pytest.approx(flops.encode_clip(config()) / 1e9)
    assert share["encoder"]["percent_of_peak"] == pytest.approx(
        100 * flops.encode_clip(config()) / spent["encode"] / 1e9 / peak
    )
    assert 0 < share["decoder"]["percent_of_peak"] < 100


def test_bench_narrates_the_whole_file(result):
    file = result["file"]
    assert file["clips"] == 12
    assert file["sentences"] == 12 * 4
    assert file["times_real_time"] == pytest.approx(24 / file["end_to_end_s"])


def test_subject_writes_what_was_asked(tiny_bundle):
    setting = Setting(str(tiny_bundle), threads=1, samples=2, memory=False)
    subject = Subject(setting.open(), setting)
    assert subject.tokens == LIMIT - 1
    watched, (clips, tokens) = subject.write(3, 2)
    assert (clips, tokens) == (3, 3 * 2 * (LIMIT - 1))
    assert len(watched.spent["encode"]) == 3


def test_command_writes_json_page_and_plot(tiny_bundle, tmp_path):
    out = tmp_path / "deep" / "tiny.json"
    sizes = {"--threads": 1, "--batch": 2, "--samples": 2, "--tokens": 3, "--repeats": 1}
    arguments = [str(tiny_bundle), *(str(word) for pair in sizes.items() for word in pair), "--no-memory", "-q"]
    told = CliRunner().invoke(command, [*arguments, "-o", str(out), "--json"], catch_exceptions=False)
    assert told.exit_code == 0
    assert json.loads(told.stdout) == json.loads(out.read_text())
    page = out.with_suffix(".md").read_text()
    assert "| the whole clip |" in page
    assert f"{json.loads(told.stdout)['throughput'][0]['clips_per_s']:.3g}" in page
    pytest.importorskip("matplotlib")
    assert out.with_suffix(".svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere", "models list"]),
        (["nano", "--batch", "1,x"], ["1,x", "1,4,8"]),
        (["nano", "--batch", "0"], ["--batch", "1,4,8"]),
        (["nano", "--engine", "warp"], ["warp", "onnxruntime"]),
        (["nano", "--tokens", "500"], ["500", "between 1 and"]),
        (["nano", "--video", "none.mp4"], ["none.mp4", "no such video"]),
        (["nano", "-o", "results"], ["results", ".json"]),
    ],
)
def test_mistakes_are_one_line_each(arguments, words, capsys):
    assert run(["bench", "--threads", "1", "-q", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in told for word in words)


def test_memory_module_prints_one_object(tiny_bundle):
    found = in_subprocess("lavila_fast.bench.memory", [str(tiny_bundle), "--batch", "2", "--samples", "2"])
    assert found["peak_bytes"] >= found["open_bytes"]


def rows_of(times):
    """What the figures make of a few engines' seconds: rows of narrations and of encoders."""
    contest = Contest(SimpleNamespace(config=NarratorConfig()), None, 1)
    for engine in ("native int8", "onnxruntime int8", "native fp32", "huggingface fp32"):
        run = TimedRun(engine, "77", 2, 2, [{"encode": 0.2, "join": 0.02, "step": 0.5, "sample": 0.1}])
        contest.runs[f"{engine} run"] = run
        contest.encoders[engine] = 1, engine.split()[1]
    contest.encoders["openvino int8, throughput"] = 4, "int8"
    peaks = {"int8": {"gflops": 400.0}, "fp32": {"gflops": 100.0}}
    return figures.narrations(contest, times, peaks), figures.encoders(contest, times, peaks)


def test_headline_follows_from_the_seconds():
    times = {"uncached encode": [1.0, 1.0, 50.0], **{f"step {n}": [1.0] for n in PREFIXES}}
    times |= {"native int8 run": [1.4, 1.5, 9.0], "onnxruntime int8 run": [4.0], "native fp32 run": [5.0]}
    times |= {"huggingface fp32 run": [20.0], "encode, native int8": [0.5], "encode, native fp32": [2.0]}
    times |= {"encode, openvino int8, throughput": [2.4]}
    narrated, encoded = rows_of(times)
    told = figures.engines_headline(narrated, encoded, {"parity_int8_sentence_points": 0.2}, {"why": "not"})
    assert told["speedup_int8_77_tokens"] == pytest.approx(77 / (1.5 / 2))
    assert told["speedup_int8_77_tokens_onnxruntime"] == pytest.approx(77 / 2)
    assert told["speedup_fp32_77_tokens"] == pytest.approx(77 / 2.5)
    assert told["speedup_int8_77_tokens_vs_huggingface"] == pytest.approx(10 / 0.75)
    assert told["speedup_int8_12_tokens"] is None  # not measured
    assert told["encoder_int8_vs_fp32"] == pytest.approx(4)
    assert told["encoder_int8_vs_openvino_int8"] == pytest.approx(0.6 / 0.5)
    operations = flops.encode_clip(NarratorConfig())
    assert told["encoder_int8_percent_of_peak"] == pytest.approx(100 * operations / 0.5 / 400e9)
    assert (told["parity_int8_sentence_points"], told["parity_fp16_sentence_points"]) == (0.2, None)
    assert told["missing"] == {"why": "not"}
    limit = (operations + flops.decode(NarratorConfig(), 76, 10)) / 400e9
    assert told["speedup_int8_77_tokens_percent_of_limit"] == pytest.approx(100 * limit / 0.75)
    assert narrated[0]["seconds_a_clip"]["step"] == 0.25


def test_readme_table_is_of_the_result():
    times = {"uncached encode": [1.0], **{f"step {n}": [1.0] for n in PREFIXES}}
    times |= {"native int8 run": [1.5], "encode, native int8": [0.25]}
    narrated, encoded = rows_of(times)
    result = {"what": "sizes", "machine": {"cpu": "2 × CPU", "isa": ["avx2", "amx_int8"]}, "uncached": {"clip_s": 77.0}}
    result |= {"narration": narrated, "encoder": encoded, "peaks": {"int8": {"gflops": 400.0}}}
    table = engines_table({**result, "headline": figures.engines_headline(narrated, encoded, {}, {})})
    assert "| lavila_fast, native engine, INT8 | 0.75 | 103× | – | – |" in table
    assert "ONNX Runtime" not in table  # not measured
    assert "(AMX-INT8)" in table
    assert "| native int8 | 250 |" in table


def test_nothing_is_invented_where_nothing_was_measured():
    told = figures.engines_headline([], [], {}, {"native int8": "no compiler"})
    assert {told[key] for key in figures.HEADLINES} == {None}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_engines_run_side_by_side(monkeypatch, tmp_path):
    """The whole of `make bench-engines` with a small narrator; peers only where they are installed."""
    sizes = config(limit=77)
    sizes = replace(sizes, text=replace(sizes.text, n_positions=80, n_embd=64), vision=replace(sizes.vision, dim=64))
    model = tiny_narrator(sizes, ending=0)
    monkeypatch.setattr("lavila_fast.bench.engines.random_narrator", lambda: model)
    out = tmp_path / "engines.json"
    arguments = ["--threads", "1", "--repeats", "1", "--clips", "50", "-o", str(out)]
    groups = [word for group in CONTESTANTS if group != "parity" for word in ("--only", group)]
    told = CliRunner().invoke(engines_command, [*arguments, *groups], catch_exceptions=False)
    assert told.exit_code == 0
    last = json.loads(told.stdout.strip().splitlines()[-1])
    result = json.loads(out.read_text())
    assert last == result["headline"]
    assert set(figures.HEADLINES) <= set(last)
    for key in figures.HEADLINES:
        assert last[key] is not None or last["missing"]
    rows = {(row["engine"], row["case"], row["clips_in_flight"]): row for row in result["narration"]}
    one = rows["onnxruntime int8", "77", 8]
    assert one["speedup"] == pytest.approx(result["uncached"]["clip_s"] / one["clip_s"])
    assert sum(one["seconds_a_clip"].values()) < one["clip_s"]
    assert rows["onnxruntime int8", "12", 8]["clip_s"] < one["clip_s"]
    assert out.with_suffix(".svg").is_file()
    assert "uncached PyTorch" in out.with_suffix(".md").read_text()
    assert engines_table(result).count("lavila_fast") >= 3
