"""A real S3 server on this machine (moto's), and a proxy before it that counts, delays and spoils."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lavila_fast.remote import faults, stores
from lavila_fast.remote.blocks import shared_blocks

KEY, SECRET = "AKIDOFTHETESTS", "secret-of-the-tests"
BUCKET = "films"


@dataclass
class Faults:
    """What the proxy does to requests for objects.

    Attributes:
        busy: So many of the next ones are answered with 503.
        cut: So many of the next ones break off in the middle of the body.
        forbid: All are answered with 403.
        read_only: What all that write are answered with; 0: they are not refused.
        delay: Seconds before each answer.
        before: Called with method and path before a request goes on.
    """

    busy: int = 0
    cut: int = 0
    forbid: bool = False
    read_only: int = 0
    delay: float = 0.0
    before: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(left - 1, 0))
        return left > 0


class Proxy:
    """Stands before a server. `sent` has the bytes of bodies of objects, by path."""

    def __init__(self, port: int) -> None:
        self.faults, self.sent, self.asked = Faults(), {}, []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy.pass_on(self, port)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None: ...

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def pass_on(self, handler: BaseHTTPRequestHandler, port: int) -> None:
        body = self._body(handler)
        path, faults = handler.path.partition("?")[0], self.faults
        if faults.before is not None:
            faults.before(handler.command, path)
        time.sleep(faults.delay)
        if faults.forbid:
            return self._say(handler, 403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
        if faults.read_only and handler.command in ("PUT", "POST"):
            code = {403: b"AccessDenied", 507: b"XMinioStorageFull", 400: b"QuotaExceeded"}[faults.read_only]
            return self._say(handler, faults.read_only, b"<Error><Code>%s</Code><Message>no</Message></Error>" % code)
        if faults.take("busy"):
            return self._say(handler, 503, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>")
        server = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "transfer-encoding"}
        server.request(handler.command, handler.path, body, headers)
        answer = server.getresponse()
        data = answer.read()
        self._count(handler, path, answer.status, data)
        handler.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                handler.send_header(name, value)
        length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(data))
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        if len(data) > 1000 and handler.command == "GET" and faults.take("cut"):
            handler.wfile.write(data[: len(data) // 2])
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return None
        handler.wfile.write(data)
        server.close()
        return None

    def _body(self, handler: BaseHTTPRequestHandler) -> bytes:
        if "chunked" in handler.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(handler.rfile.readline().split(b";")[0], 16):
                pieces.append(handler.rfile.read(size))
                handler.rfile.readline()
            handler.rfile.readline()
            return b"".join(pieces)
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))

    def _count(self, handler: BaseHTTPRequestHandler, path: str, status: int, data: bytes) -> None:
        with self.faults.lock:
            self.asked.append((handler.command, path, handler.headers.get("Range"), status))
            if handler.command == "GET" and status in (200, 206):
                self.sent[path] = self.sent.get(path, 0) + len(data)

    def _say(self, handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response_only(status)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def bytes_of(self, key: str) -> int:
        """How much of an object has been sent."""
        return self.sent.get(f"/{BUCKET}/{key}", 0)


@contextlib.contextmanager
def server() -> Iterator[int]:
    """moto's server; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def settings(url: str) -> dict[str, str]:
    """What the environment says to have all clients ask this server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@functools.cache
def client(url: str) -> Any:
    """An independent one: boto3's."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


def begin_anew(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No faults, nothing kept from the test before, and no long pauses, for a test that asks this proxy."""
    proxy.faults = Faults()
    for name, value in settings(proxy.url).items():
        monkeypatch.setenv(name, value)
    stores.store_of.cache_clear()
    shared_blocks.cache_clear()
    monkeypatch.setattr(faults, "_FIRST_WAIT", 0.01)


def upload(url: str, key: str, data: bytes | Path) -> None:
    """Put an object there."""
    body = data.read_bytes() if isinstance(data, Path) else data
    client(url).put_object(Bucket=BUCKET, Key=key, Body=body)


def restore(url: str, objects: dict[str, Path]) -> None:
    """Have these objects in the bucket and no others."""
    told = client(url).list_objects_v2(Bucket=BUCKET).get("Contents", [])
    there = {one["Key"]: one["ETag"].strip('"') for one in told}
    for key in there.keys() - objects.keys():
        client(url).delete_object(Bucket=BUCKET, Key=key)
    for key, path in objects.items():
        if there.get(key) != hashlib.md5(path.read_bytes()).hexdigest():
            upload(url, key, path)


def objects(url: str, prefix: str = "") -> dict[str, bytes]:
    """What the bucket holds."""
    told = client(url).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {one["Key"]: client(url).get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in told}


def environment(url: str, **more: str) -> dict[str, str]:
    """For processes."""
    return {**os.environ, **settings(url), **more}
