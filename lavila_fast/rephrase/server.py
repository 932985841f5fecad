"""An OpenAI-style server as paraphraser: vLLM, llama.cpp, Ollama, or one that is paid for.

    server = Server(Ask("http://localhost:8000/v1", "qwen", "Give 5 paraphrases, one a line: {}"))
    server.paraphrase(["The person picks up the cup."])

A key is read from an environment variable and goes into one header; it stands in no message, file or cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from lavila_fast.errors import InputError, ServerError
from lavila_fast.rephrase.answers import candidates_in, reason_in, seconds_told
from lavila_fast.rephrase.run import Refused
from lavila_fast.shown import shown

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS, MOST_BYTES, MOST_PROMPT = 4, 1 << 20, 1 << 20
MOST_WAIT = 60.0
"""Seconds that a busy server's `Retry-After` is followed for; by most limits' next minute it may be asked again."""
_PIECE = 512
_BROKEN_LINE = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)
_LATE = (requests.Timeout, urllib3.exceptions.TimeoutError)
_BUSY = (408, 409, 429)
_REFUSED = (400, 413, 422)
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Ask:
    """What is asked for, and where.

    Attributes:
        url: Up to and with ``/v1``.
        model: As the server calls it.
        prompt: ``{}`` stands for the sentence.
        samples: Answers a sentence; each may hold several lines, which are a candidate each.
        temperature: Of its sampling.
        max_tokens: Of an answer.
    """

    url: str
    model: str
    prompt: str
    samples: int = 1
    temperature: float = 0.7
    max_tokens: int = 512

    def __post_init__(self) -> None:
        """Check what would fail at each sentence.

        Raises:
            InputError: the address is none, or the prompt has no place for the sentence.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--server {shown(self.url)}: give an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError("--server: leave the key, and what follows a ?, out of the address; see --key-env")
        if self.prompt.count("{}") != 1:
            raise InputError("--prompt: the file is to have {} once, where the sentence stands")

    @property
    def identity(self) -> str:
        """What answers depend on, as far as one can tell from here."""
        return f"{self.url.rstrip('/')} {self.model} {hashlib.sha256(self.prompt.encode()).hexdigest()}"

    def settings(self) -> dict[str, Any]:
        """What they depend on beside that."""
        return {"samples": self.samples, "temperature": self.temperature, "max_tokens": self.max_tokens}


def read_prompt(path: Path) -> str:
    """A prompt file.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        with path.open("rb") as file:
            return file.read(MOST_PROMPT).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a text with {{}} in it") from error


class Server:
    """Asks several sentences at a time."""

    def __init__(
        self, ask: Ask, workers: int = 8, key_variable: str = KEY_VARIABLE, timeout: float = 120.0, pause: float = 1.0
    ) -> None:
        """Nothing is sent yet.

        Args:
            ask: What and where.
            workers: Requests at a time.
            key_variable: The environment variable that holds a key; no header is sent where it is not set.
            timeout: Seconds for a whole answer.
            pause: Seconds before it is tried again, doubled each time; more if the server says so.

        Raises:
            InputError: the variable holds no key.
        """
        self.ask, self.workers, self.timeout, self.pause = ask, workers, timeout, pause
        key = os.environ.get(key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):  # said here, for who sends it would tell the key
            raise InputError(f"{key_variable}: holds odd characters, so it is no key; set it again")
        self._key, self._headers = key, {"Authorization": f"Bearer {key}"} if key else {}

    def batches(self, sentences: Sequence[str]) -> Iterator[list[str]]:
        """See `run.Model`: what is lost when the process is killed is at most one."""
        rest = iter(sentences)
        while batch := list(itertools.islice(rest, 4 * self.workers)):
            yield batch

    def paraphrase(self, sentences: Sequence[str]) -> list[list[str] | Refused]:
        """Candidates of each sentence that it does not refuse.

        Raises:
            ServerError: it cannot be reached, refuses whatever it is asked, or answers something else.
        """
        return _side_by_side(self._candidates, sentences, self.workers)

    def _candidates(self, sentence: str) -> list[str] | Refused:
        body = {
            "model": self.ask.model,
            "messages": [{"role": "user", "content": self.ask.prompt.replace("{}", sentence)}],
            "n": self.ask.samples,
            "temperature": self.ask.temperature,
            "max_tokens": self.ask.max_tokens,
        }
        for attempt in range(ATTEMPTS):
            try:
                return _within(self.timeout, lambda: self._post(body))
            except _BROKEN_LINE as error:
                if attempt == ATTEMPTS - 1:
                    raise ServerError(f"{self.ask.url}: no answer ({_why(error)}); {_way_out(error)}") from error
                told = error.wait if isinstance(error, _BusyError) else 0.0
                time.sleep(max(told, self.pause * 2**attempt))
            except requests.RequestException as error:
                raise ServerError(f"{self.ask.url}: cannot be asked ({_why(error)}); check --server") from error
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                what = "answers something else than chat completions"
                raise ServerError(f"{self.ask.url}: {what}; give its address up to /v1") from error
        raise AssertionError

    def _post(self, body: dict[str, Any]) -> list[str] | Refused:
        until = time.monotonic() + self.timeout
        url = f"{self.ask.url.rstrip('/')}/chat/completions"
        how: dict[str, Any] = {"headers": self._headers, "stream": True, "allow_redirects": False}
        # A redirect would carry sentences, and perhaps the key, elsewhere.
        with requests.post(url, json=body, timeout=self.timeout, **how) as answer:
            if answer.status_code in _BUSY or answer.status_code >= 500:
                raise _BusyError(answer)
            if answer.status_code not in (200, *_REFUSED):
                told = f"{self.ask.url}: the server says {answer.status_code} {shown(answer.reason)}"
                raise ServerError(f"{told}; check --server, --model and the key")
            content = self._whole(answer, until)
        if answer.status_code != 200:
            why = " ".join(f"{answer.status_code} {answer.reason} {reason_in(content)}".split())
            return Refused(self.ask.url, shown(why.replace(self._key, "…") if self._key else why)[:300])
        return candidates_in(json.loads(content))

    def _whole(self, answer: requests.Response, until: float) -> bytes:
        """All of an answer; nothing more of it once nobody waits for it."""
        content = bytearray()
        for piece in answer.raw.stream(_PIECE, decode_content=True):
            content += piece
            if len(content) > MOST_BYTES:
                raise ServerError(f"{self.ask.url}: an answer of more than {MOST_BYTES >> 20} MiB; check --model")
            if time.monotonic() > until:
                raise _late(self.timeout)
        return bytes(content)


class _BusyError(requests.ConnectionError):
    """It is there, and does not answer now.

    Attributes:
        wait: Seconds in which it wants to be left alone.
    """

    def __init__(self, answer: requests.Response) -> None:
        super().__init__(f"it says {answer.status_code} {answer.reason}")
        self.wait = min(seconds_told(answer.headers.get("Retry-After", "")), MOST_WAIT)


def _within(seconds: float, ask: Callable[[], _Found]) -> _Found:
    """What is found in so many seconds: a socket's own patience begins anew with each byte.

    Raises:
        requests.Timeout: nothing by then; who looks for it is left behind, a daemon.
    """
    done: SimpleQueue[_Found | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            done.put(ask())
        except BaseException as error:  # whatever it is, who waits is told
            done.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        found = done.get(timeout=seconds)
    except Empty:
        found = _late(seconds)
    if isinstance(found, BaseException):
        raise found
    return found


def _late(seconds: float) -> requests.Timeout:
    return requests.Timeout(f"not whole within {seconds:g} s")


def _side_by_side(ask: Callable[[str], _Found], sentences: Sequence[str], workers: int) -> list[_Found]:
    """Answers in the order of sentences; the first error ends it.

    Threads are daemons, which a pool's are not: who is stopped, or has failed, does not wait for a slow server.
    """
    todo: SimpleQueue[tuple[int, str]] = SimpleQueue()
    done: SimpleQueue[tuple[int, _Found | BaseException]] = SimpleQueue()
    for pair in enumerate(sentences):
        todo.put(pair)

    def work() -> None:
        with contextlib.suppress(Empty):
            while True:
                number, sentence = todo.get_nowait()
                try:
                    done.put((number, ask(sentence)))
                except BaseException as error:  # whatever it is, who waits is told
                    done.put((number, error))

    for _ in range(min(workers, len(sentences))):
        threading.Thread(target=work, daemon=True).start()
    found: dict[int, _Found] = {}
    try:
        while len(found) < len(sentences):
            number, answer = done.get()
            if isinstance(answer, BaseException):
                raise answer
            found[number] = answer
    finally:
        with contextlib.suppress(Empty):
            while True:
                todo.get_nowait()
    return [found[number] for number in range(len(sentences))]


def _way_out(error: BaseException) -> str:
    if isinstance(error, _BusyError):
        return "wait, or lower --workers"
    return "see that it runs, or give it longer by --timeout" if isinstance(error, _LATE) else "see that it runs"


def _why(error: BaseException) -> str:
    """The innermost cause, in a few words."""
    while inner := (error.__cause__ or error.__context__):
        error = inner
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:120]
