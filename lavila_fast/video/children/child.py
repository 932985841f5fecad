"""A child as its parent sees it: asked, watched, and ended when it dies, hangs or takes too much."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from lavila_fast.errors import LavilaError, VideoError
from lavila_fast.remote.blocks import shared_blocks
from lavila_fast.remote.faults import RemoteError
from lavila_fast.remote.path import Place, RemotePath
from lavila_fast.video import pulse
from lavila_fast.video.children.limits import GIB, ChildLimits
from lavila_fast.video.children.memory import Ring, anonymous
from lavila_fast.video.children.wire import DEBUG, Message, Wire

# Modules are looked for where the parent finds them, and the parent's main module is not touched.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv.pop().split('\\n'); from lavila_fast.video.children.worker import main; main()"
)
_ALONE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # nothing to share out in a child
_STEP = 1.0  # seconds between looks at its heartbeats
_START = 60.0  # seconds that a busy machine may take to start one, at least
_DYING = 5.0  # seconds from the end of its wire to its own
_PATIENCE = 5.0  # seconds until a killed child is gone; one that waits for a dead disk may take longer
_LEAVE_OUT = "leave it out or re-encode it"


class Child:
    """A process that decodes.

    Attributes:
        idle: It has answered all that it was asked, and can be asked again.
        ring: Where its clips lie.
    """

    def __init__(self, limits: ChildLimits) -> None:
        """Start it, without waiting until it is ready.

        Raises:
            OSError: there can be no more processes.
        """
        self.idle, self._limits, self._ready = True, limits, False
        memory = anonymous()
        self.ring = Ring(memory)
        ours, theirs = socket.socketpair()
        self._wire, self._words = Wire(ours), tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        numbers = os.getpid(), theirs.fileno(), memory, limits.memory
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [sys.executable, "-c", _PROGRAM, *map(str, numbers), "\n".join(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get(DEBUG) else self._words,
                pass_fds=(theirs.fileno(), memory),
                env={**os.environ, **dict.fromkeys(_ALONE, "1")},
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ask(self, request: Message, path: Place) -> Iterator[Message]:
        """Its answers; the last one says that it is ``done``, or has the ``error`` that reading has ended with.

        Args:
            request: See `worker`.
            path: The video that errors blame.

        Raises:
            VideoError: it died of this video, made no progress for too long, or needed too much memory.
            LavilaError: it could not be started.
        """
        self.idle = False
        try:
            self._wire.send(request)
            while True:
                answer = self._next(path)
                if "error" in answer or "done" in answer:
                    break
                if "block" in answer:
                    self._give_block(answer, path)
                else:
                    yield answer
        except ValueError:
            self.kill()
            raise VideoError(path, "the decoder sent what makes no sense", _LEAVE_OUT) from None
        except EOFError:
            raise self._death(path) from None
        if answer.get("error") == MemoryError.__name__:
            raise self._too_large(path)
        self.idle = not answer.get("worn")
        yield answer

    def _give_block(self, asked: Message, path: Place) -> None:
        """Send a block of the video, or why it cannot be had; of no other file, whatever a child asks for.

        Raises:
            ValueError: it is out of its mind.
        """
        try:
            number, chunk = int(asked["block"]), int(asked["chunk"])
            if not isinstance(path, RemotePath) or number < 0 or not -1 <= chunk < len(path.chunks):
                raise ValueError
            data = shared_blocks().get(path if chunk < 0 else path.chunks[chunk], number)
        except RemoteError as error:
            self._wire.send({"what": error.what, "todo": error.todo})
        except (KeyError, TypeError) as error:
            raise ValueError from error
        else:
            self._wire.send({"bytes": len(data)}, data)

    def taken(self) -> None:
        """Tell it that a clip has been taken out of the ring."""
        with contextlib.suppress(EOFError):  # the next answer will not come
            self._wire.send({"taken": True})

    def kill(self) -> None:
        """Kill it; whoever waits for an answer hears that it is dead."""
        self._process.kill()
        self._wire.hang_up()

    def end(self) -> None:
        """Kill it, and give back what belonged to it. Nobody waits for an answer."""
        self.idle = False
        self.kill()
        self._wire.close()
        self._words.close()
        self.ring.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is reaped when another one is started
            self._process.wait(_PATIENCE)

    def _next(self, path: Place) -> Message:
        """Its next message.

        Raises:
            EOFError, ValueError: it is dead, or out of its mind.
            VideoError: there is no progress.
        """
        most = self._limits.seconds if self._ready else max(self._limits.seconds, _START)
        step = min(_STEP, most / 4)
        silent, beats = 0.0, pulse.beats(self.ring.head)
        while (message := self._wire.receive(step)) is None:
            # Steps are counted, not seconds: while this process is stopped, its children are.
            before, beats = beats, pulse.beats(self.ring.head)
            silent = silent + step if beats == before else 0.0
            if silent >= most:
                self.kill()
                todo = "leave it out, or wait longer: --decode-timeout"
                raise VideoError(path, f"no frame for {most:g} s", todo)
        if not self._ready:
            self._ready = "ready" in message
            return self._next(path)
        return message

    def _death(self, path: Place) -> LavilaError:
        """What its death is to be called."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING)
        code = self._process.poll()
        self.kill()
        if not self._ready:
            return LavilaError(
                f"no process that decodes could be started ({self._last_words() or code}); "
                "decode in this one: --no-isolate"
            )
        if code == -signal.SIGKILL:
            return VideoError(path, "the decoder was killed (signal 9), perhaps for want of memory", _LEAVE_OUT)
        if code is None:
            how = "it hung up"
        else:
            how = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
        return VideoError(path, f"the decoder died ({how})", _LEAVE_OUT)

    def _last_words(self) -> str:
        """The last line that it printed."""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _too_large(self, path: Place) -> VideoError:
        most = f"{self._limits.memory / GIB:.3g} GB"
        return VideoError(path, f"needed more than {most} of memory", "leave it out, or allow more: --decode-memory")
