"""An OpenAI-style server as paraphraser: answers, faults, a killed run that goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lavila_fast.cli.rephrase import rephrase
from lavila_fast.errors import InputError, LavilaError, ServerError
from lavila_fast.rephrase import server as module
from lavila_fast.rephrase.answers import candidates_in, reason_in, seconds_told
from lavila_fast.rephrase.run import MOST_REFUSED
from lavila_fast.rephrase.server import Ask, Server

KEY = "sk-secret-of-the-test"
THINGS = "cup bowl plate pan knife fork spoon bottle glass kettle box apple".split()  # noqa: SIM905
ROWS = [{"video": "a", "start": i, "end": i + 1, "text": f"#C C lifts the {one}"} for i, one in enumerate(THINGS * 2)]


class Stub:
    """A server; `answer` makes (status, body) of a request's JSON, `more` are headers of its answers.

    `beat` is seconds between two bytes from `drips` on, the "head" or the "body"; `left` is set when nobody reads on.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.pause = 0.0
        self.more: dict[str, str] = {}
        self.drips, self.beat, self.left = "", 0.0, threading.Event()
        self.answer = self.paraphrase
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append(body["messages"][0]["content"])
                stub.headers.append(dict(self.headers))
                time.sleep(stub.pause)
                status, content = stub.answer(body)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                if stub.drips == "head":
                    self.drip(b"HTTP/1.0 200 OK\r\n\r\n" + raw)
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                for header in stub.more.items():
                    self.send_header(*header)
                self.end_headers()
                self.drip(raw) if stub.drips else self.wfile.write(raw)

            def drip(self, raw: bytes) -> None:
                with contextlib.suppress(OSError):
                    for at in range(len(raw)):
                        self.wfile.write(raw[at : at + 1])
                        threading.Event().wait(stub.beat)
                    return
                stub.left.set()

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def paraphrase(self, body: dict[str, Any]) -> tuple[int, Any]:
        thing = body["messages"][0]["content"].rpartition(" ")[2].rstrip(".")
        lines = f"1. The person raises the {thing}.\n\n2) The {thing} is lifted by the person.\n- The person waits."
        return 200, {"choices": [{"message": {"content": lines}}]}

    def distinct(self) -> set[str]:
        return {one.rpartition(" ")[2] for one in self.asked}


@pytest.fixture
def stub() -> Iterator[Stub]:
    one = Stub()
    yield one
    one.http.shutdown()
    one.http.server_close()


@pytest.fixture
def arguments(tmp_path: Path, stub: Stub) -> list[str]:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "ask.txt").write_text("Three paraphrases, one a line: {}")
    found = [str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--cache", str(tmp_path / "c.sqlite")]
    return [*found, "--server", stub.url, "--model", "m", "--prompt", str(tmp_path / "ask.txt"), "--json"]


def run(arguments: list[str], code: int = 0) -> Any:
    result = CliRunner().invoke(rephrase, arguments, catch_exceptions=False)
    assert result.exit_code == code
    return result


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_become_paraphrases(arguments: list[str], stub: Stub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    result = run([*arguments, "--limit", "13"])
    told = json.loads(result.stdout)
    assert (told["rows"], told["sentences"], told["candidates"], told["kept"]) == (13, 12, 36, 24)
    assert told["dropped"]["object"] == 12
    rows = rows_of(tmp_path / "out.jsonl")
    assert rows[0]["paraphrases"] == ["#C C raises the cup", "#C the cup is lifted by C"] == rows[12]["paraphrases"]
    assert sorted(stub.asked)[0] == "Three paraphrases, one a line: The person lifts the apple."
    assert len(stub.asked) == 12
    assert {one["Authorization"] for one in stub.headers} == {f"Bearer {KEY}"}
    assert KEY not in result.output
    assert not [path for path in tmp_path.iterdir() if KEY.encode() in path.read_bytes()]


def test_a_key_that_is_none_is_not_told(arguments: list[str], stub: Stub, monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(InputError, match="MY_KEY: holds odd characters") as raised:
        run([*arguments, "--key-env", "MY_KEY"])
    assert KEY not in str(raised.value)
    assert not stub.asked


def test_no_key_no_header(arguments: list[str], stub: Stub, monkeypatch: Any) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run([*arguments, "--limit", "1"])
    assert "Authorization" not in stub.headers[0]


def test_a_killed_run_goes_on(arguments: list[str], stub: Stub, tmp_path: Path) -> None:
    stub.pause = 0.05
    command = [sys.executable, "-m", "lavila_fast", "rephrase", *arguments, "--workers", "1"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while len(stub.asked) < 6 and time.monotonic() < deadline and child.poll() is None:
        threading.Event().wait(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.jsonl").exists()
    before, stub.pause = len(stub.asked), 0.0
    told = json.loads(run([*arguments, "--workers", "1"]).stdout)
    assert told["known"] >= 4  # a batch of four was whole
    assert len(stub.asked) - before == 12 - told["known"]
    assert len(stub.distinct()) == 12
    assert [len(row["paraphrases"]) for row in rows_of(tmp_path / "out.jsonl")] == [2] * 24


def test_a_server_that_goes_away(arguments: list[str], stub: Stub, tmp_path: Path) -> None:
    answered = stub.answer
    stub.answer = lambda body: answered(body) if len(stub.asked) <= 8 else (503, {})
    with pytest.raises(
        ServerError, match=r"no answer \(it says 503.*\); .*; 8 of 12 sentences are kept in .*c\.sqlite, run"
    ) as raised:
        run([*arguments, "--workers", "1"])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.jsonl").exists()
    stub.answer = answered
    assert json.loads(run(arguments).stdout)["known"] == 8


def test_a_server_that_is_busy_is_asked_again(arguments: list[str], stub: Stub) -> None:
    answered = stub.answer
    stub.answer = lambda body: (429, {}) if len(stub.asked) == 1 else answered(body)
    assert json.loads(run([*arguments, "--limit", "1"]).stdout)["kept"] == 2


def test_a_server_that_stays_busy_is_not_called_dead(arguments: list[str], stub: Stub) -> None:
    stub.answer = lambda body: (429, {})
    with pytest.raises(ServerError, match=r"no answer \(it says 429 Too Many Requests\); wait, or lower --workers"):
        run([*arguments, "--limit", "1"])


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(module.time, "sleep", lambda seconds: found.append(seconds) if seconds else None)
    return found


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("told", "waited"), [("7", [7]), ("7.5", [7.5]), ("86400", [60]), ("0", [1]), ("soon", [1]), ("", [1]), ("-3", [1])]
)
def test_a_busy_server_says_how_long(
    arguments: list[str], stub: Stub, waits: list[float], status: int, told: str, waited: list[float]
) -> None:
    answered, stub.more = stub.answer, {"Retry-After": told}
    stub.answer = lambda body: (status, {}) if len(stub.asked) == 1 else answered(body)
    assert json.loads(run([*arguments, "--limit", "1"]).stdout)["kept"] == 2
    assert waits == waited


def test_a_busy_server_says_until_when(arguments: list[str], stub: Stub, waits: list[float]) -> None:
    answered, stub.more = stub.answer, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}
    stub.answer = lambda body: (429, {}) if len(stub.asked) == 1 else answered(body)
    run([*arguments, "--limit", "1"])
    assert 20 < waits[0] <= 30


def test_without_a_word_the_pause_doubles(arguments: list[str], stub: Stub, waits: list[float]) -> None:
    stub.answer = lambda body: (503, {})
    with pytest.raises(ServerError, match="it says 503"):
        run([*arguments, "--limit", "1"])
    assert waits == [1, 2, 4]


def test_seconds_are_told_in_many_ways() -> None:
    told = {"12": 12, " 3 ": 3, "9" * 400: float("inf"), formatdate(0, usegmt=True): 0, "nan": 0, "1e3": 0, "٣": 0}
    told |= {"Mon, 99 Foo 2020 00:00:00 GMT": 0, f"Mon, 01 Jan {'9' * 40} 00:00:00 GMT": 0}
    assert {one: seconds_told(one) for one in told} == told


def refusing(stub: Stub, refused: Any, answer: tuple[int, Any] = (400, {"error": {"message": "too sharp"}})) -> None:
    answered = stub.paraphrase
    stub.answer = lambda body: answer if refused(body["messages"][0]["content"]) else answered(body)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_sentence_costs_itself(arguments: list[str], stub: Stub, tmp_path: Path, status: int) -> None:
    refusing(stub, lambda text: "knife" in text or "fork" in text, (status, {"error": {"message": "too sharp\x1b"}}))
    result = run(arguments, code=1)
    told = json.loads(result.stdout)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line.removeprefix("error: ") for line in lines] == told["refused"]
    assert f"/v1: refuses 'The person lifts the knife.' ({status} " in lines[0]
    assert r"too sharp\x1b); it has no paraphrases" in lines[0]
    assert "refused: 2 sentences" in result.stderr
    assert [len(row["paraphrases"]) for row in rows_of(tmp_path / "out.jsonl")] == [2, 2, 2, 2, 0, 0, *[2] * 6] * 2
    assert len(stub.asked) == 12
    again = json.loads(run([*arguments, "-q"], code=1).stdout)  # they are asked again, no others are
    assert (again["known"], len(again["refused"]), len(stub.asked)) == (10, 2, 14)
    stub.answer = stub.paraphrase
    assert json.loads(run(arguments).stdout)["refused"] == []
    assert [len(row["paraphrases"]) for row in rows_of(tmp_path / "out.jsonl")] == [2] * 24


def test_refused_at_last_is_told_too(arguments: list[str], stub: Stub) -> None:
    refusing(stub, lambda text: "apple" in text)
    result = run([*arguments, "-q", "--workers", "1"], code=1)
    assert result.stderr.count("\n") == len(json.loads(result.stdout)["refused"]) == 1


def test_the_key_in_a_refusal_is_not_told(arguments: list[str], stub: Stub, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    refusing(stub, lambda text: "cup" in text, (400, {"error": f"{KEY} may not"}))
    result = run(arguments, code=1)
    assert "Bad Request … may not" in result.stderr
    assert KEY not in result.output


def test_few_sentences_all_refused(arguments: list[str], stub: Stub, tmp_path: Path) -> None:
    refusing(stub, lambda text: True)
    assert len(json.loads(run(arguments, code=3).stdout)["refused"]) == 12
    assert [row["paraphrases"] for row in rows_of(tmp_path / "out.jsonl")] == [[]] * 24
    assert run([*arguments, "--limit", "1"], code=1)


def many_rows(tmp_path: Path, count: int) -> None:
    rows = ({"text": f"#C C lifts the cup {number}"} for number in range(count))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_server_that_refuses_everything(arguments: list[str], stub: Stub, tmp_path: Path, capsys: Any) -> None:
    many_rows(tmp_path, 400)
    refusing(stub, lambda text: True, (400, {"detail": [{"loc": ["body"], "msg": "max_tokens is too large"}]}))
    with pytest.raises(
        ServerError, match=r"/v1: refuses 20 sentences .*max_tokens is too large\); check --m"
    ) as raised:
        run([*arguments, "--workers", "1"])
    assert "\n" not in str(raised.value)
    assert len(stub.asked) == MOST_REFUSED
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "out.jsonl").exists()


def test_a_server_that_begins_to_refuse_everything(arguments: list[str], stub: Stub, tmp_path: Path) -> None:
    many_rows(tmp_path, 400)
    refusing(stub, lambda text: len(stub.asked) > 8)
    with pytest.raises(ServerError, match=r"refuses 28 sentences .*; 8 of 400 sentences are kept in"):
        run([*arguments, "--workers", "1"])
    with pytest.raises(ServerError, match="refuses 28 sentences"):
        run([*arguments, "--workers", "1"])
    assert len(stub.asked) == 8 + 2 * 28


def test_many_refused_before_do_not_end_a_run(arguments: list[str], stub: Stub, tmp_path: Path) -> None:
    many_rows(tmp_path, 100)
    refusing(stub, lambda text: int(text.rpartition(" ")[2].rstrip(".")) >= 60)
    for known in (0, 60):
        told = json.loads(run([*arguments, "--workers", "1"], code=1).stdout)
        assert (told["known"], len(told["refused"])) == (known, 40)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_wrong_for_all_ends_it_at_once(arguments: list[str], stub: Stub, status: int) -> None:
    stub.answer = lambda body: (status, {})
    with pytest.raises(
        ServerError, match=rf"the server says {status} .*; check --server, --model and the key"
    ) as raised:
        run([*arguments, "--workers", "1"])
    assert "\n" not in str(raised.value)
    assert len(stub.asked) <= 2  # the worker may have begun another


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_drips(arguments: list[str], stub: Stub, part: str) -> None:
    stub.drips, stub.beat = part, 0.1
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"no answer \(not whole within 0\.4 s\); .*give it longer by --timeout"):
        run([*arguments, "--limit", "1", "--timeout", "0.4"])
    assert time.monotonic() - began < 20  # each of four would take that long


def test_a_dripping_server_is_let_go(arguments: list[str], stub: Stub) -> None:
    stub.drips, stub.beat = "body", 0.001
    stub.answer = lambda body: (200, b" " * 100_000)
    with pytest.raises(ServerError, match="not whole"):
        run([*arguments, "--limit", "1", "--timeout", "0.3"])
    assert stub.left.wait(60)


def test_a_slow_answer_in_time(arguments: list[str], stub: Stub) -> None:
    stub.drips, stub.beat = "body", 0.001
    assert json.loads(run([*arguments, "--limit", "1"]).stdout)["kept"] == 2


def test_ctrl_c_does_not_wait_for_a_slow_server(arguments: list[str], stub: Stub) -> None:
    answered = threading.Event()
    stub.answer = lambda body: ((answered.wait(60) and 200) or 500, {})
    command = [sys.executable, "-m", "lavila_fast", "rephrase", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not stub.asked and time.monotonic() < deadline and child.poll() is None:
        threading.Event().wait(0.01)
    child.send_signal(signal.SIGINT)
    try:
        assert child.wait(30) == 130
    finally:
        answered.set()
        child.kill()


def test_what_had_no_answer_is_asked_again(arguments: list[str], stub: Stub) -> None:
    answered = stub.answer
    stub.answer = lambda body: (200, {"choices": [{"message": {"content": ""}}]})
    run([*arguments, "--limit", "1"])
    stub.answer = answered
    told = json.loads(run([*arguments, "--limit", "1"]).stdout)
    assert (told["known"], told["kept"]) == (0, 2)


def test_columns_of_parquet_are_all_that_rows_have(arguments: list[str], stub: Stub, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    text = "#C C lifts the cup"
    stub.answer = lambda body: (200, {"choices": [{"message": {"content": "The person raises the cup \ud800."}}]})
    arguments[2] = str(tmp_path / "out.parquet")
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ({"text": text}, {"text": text, "x": 1}))
    )
    run(arguments)
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["x"] for row in rows] == [None, 1]
    assert rows[0]["paraphrases"] == ["#C C raises the cup ?"]
    for odd in ("a", 1 << 70, "\ud800"):
        rows = [{"text": text, "x": one} for one in (1, odd)] if odd != "\ud800" else [{"text": text, "x": odd}]
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(InputError, match=r"column x: its values make no column of Parquet .*; write \.jsonl"):
            run(arguments)


def test_jsonl_is_json_whatever_is_read(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "#C C lifts the cup", "start": NaN, "x": [Infinity]}\n')
    run(arguments)
    assert "NaN" not in (tmp_path / "out.jsonl").read_text()
    assert rows_of(tmp_path / "out.jsonl")[0]["x"] == [None]
    (tmp_path / "in.jsonl").write_text('{"video": "v", "start": 0, "end": NaN, "text": "#C C lifts the cup"}\n')
    arguments[2] = str(tmp_path / "out.pkl")
    with pytest.raises(InputError, match="end nan make no row of a pickle"):
        run(arguments)


def test_no_column_is_lost_for_its_name(arguments: list[str], tmp_path: Path) -> None:
    arguments[0], arguments[2] = str(tmp_path / "in.csv"), str(tmp_path / "out.csv")
    (tmp_path / "in.csv").write_text("text,note,note,paraphrase_1,paraphrase_9\n#C C lifts the cup,a,b,old,old\n")
    run([*arguments, "--top-k", "1"])
    written = (tmp_path / "out.csv").read_text()
    assert written == "text,note,note_2,paraphrase_1\n#C C lifts the cup,a,b,#C C raises the cup\n"
    for column, output in (("paraphrases", "out.jsonl"), ("paraphrase_1", "out.csv")):
        arguments[2] = str(tmp_path / output)
        with pytest.raises(InputError, match=f"--column {column}: paraphrases are written to it"):
            run([*arguments, "--column", column])


def test_more_rows_than_can_be_counted(arguments: list[str]) -> None:
    assert "larger than anything" in run([*arguments, "--limit", "9" * 30], code=2).output


def test_nobody_is_there(arguments: list[str]) -> None:
    arguments[arguments.index("--server") + 1] = "http://127.0.0.1:9/v1"
    with pytest.raises(
        ServerError, match=r"http://127\.0\.0\.1:9/v1: no answer \(Connection refused\); see that it runs"
    ):
        run(arguments)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((401, {}), "the server says 401 Unauthorized; check --server, --model and the key"),
        ((302, {}), "the server says 302 Found"),
        ((200, b"<html>"), "answers something else than chat completions"),
        ((200, {"choices": [{"text": "x"}]}), "answers something else than chat completions"),
        ((200, {"choices": [{"message": {"content": [1]}}]}), "answers something else than chat completions"),
        ((200, b"[" * 100_000), "answers something else than chat completions"),
        ((200, b" " * ((1 << 20) + 1)), "an answer of more than 1 MiB"),
    ],
)
def test_answers_that_are_none(arguments: list[str], stub: Stub, answer: tuple[int, Any], told: str) -> None:
    stub.answer = lambda body: answer
    with pytest.raises(ServerError, match=told):
        run([*arguments, "--limit", "1"])


def test_an_empty_paraphrase(arguments: list[str], stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda body: (200, {"choices": [{"message": {"content": None}}, {"message": {"content": " \n"}}]})
    told = json.loads(run([*arguments, "--limit", "2"]).stdout)
    assert (told["candidates"], told["kept"], told["without"]) == (0, 0, 2)
    assert [row["paraphrases"] for row in rows_of(tmp_path / "out.jsonl")] == [[], []]


def test_what_is_asked_wrongly(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("no place for it")
    with pytest.raises(InputError, match=r"--prompt: the file is to have \{\} once"):
        run(arguments)
    (tmp_path / "ask.txt").unlink()
    with pytest.raises(InputError, match=r"ask\.txt: cannot be read"):
        run(arguments)
    with pytest.raises(InputError, match="--server needs --model, its name there, and --prompt"):
        run(arguments[: arguments.index("--prompt")])
    faults = ("ftp://x", "give an address such as"), ("http://me:pw@x/v1", "leave the key"), ("http://x?k=pw", "leave")
    for url, told in faults:
        with pytest.raises(LavilaError, match=told) as raised:
            Ask(url, "m", "{}")
        assert "pw" not in str(raised.value)


def test_lists_lose_their_numbers() -> None:
    content = '1. One cup.\n(2) "Two cups."\n  * Three 3.5 cups\n– four\n5 cups'
    found = candidates_in({"choices": [{"message": {"content": content}}]})
    assert found == ["One cup.", "Two cups.", "Three 3.5 cups", "four", "5 cups"]


def test_identity_tells_prompts_apart() -> None:
    assert Ask("http://x/v1", "m", "a {}").identity != Ask("http://x/v1", "m", "b {}").identity
    assert Server(Ask("http://x/v1/", "m", "{}")).ask.identity == Ask("http://x/v1", "m", "{}").identity


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"error": {"message": "filtered", "code": "content_filter"}}, "filtered"),
        ({"error": "too long"}, "too long"),
        ({"object": "error", "message": "too long"}, "too long"),
        ({"detail": [{"loc": ["body"], "msg": "too long"}]}, "too long"),
        ({"error": {"message": None}, "detail": "why"}, "why"),
        ({"error": 7}, ""),
        (None, ""),
    ],
)
def test_reasons_have_many_shapes(content: Any, reason: str) -> None:
    assert reason_in(json.dumps(content).encode()) == reason


def test_reasons_that_are_none() -> None:
    assert [reason_in(one) for one in (b"<html>", b"", b"\xff", b"[" * 100_000, b'{"error":' * 900 + b"1")] == [""] * 5
