"""Several workers for one run: what is written is what one process writes, whoever dies meanwhile."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from scribe import Scribe
from test_video_coded import write_video

from lavila_fast.archive.fleet.cluster import Cluster
from lavila_fast.archive.fleet.crew import Fleet
from lavila_fast.archive.fleet.local import LocalLink
from lavila_fast.archive.fleet.muster import Workers
from lavila_fast.archive.fleet.seen import Answer, Link, Task, WorkerLost
from lavila_fast.archive.fleet.worker import Worker
from lavila_fast.archive.request import Request
from lavila_fast.archive.run import Summary
from lavila_fast.archive.work import Narrating
from lavila_fast.cli.main import run
from lavila_fast.errors import BundleError, InputError, LavilaError, NotFiniteError
from lavila_fast.generate.options import Options
from lavila_fast.records import Clip
from lavila_fast.video.sources import VideoSource

KITCHEN = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long ones that are cut into stretches, short ones, and one that is none."""
    folder = tmp_path_factory.mktemp("films")
    for number, frames in enumerate((900, 40, 30, 700, 20)):
        write_video(folder / f"{number}.mp4", frames, Fraction(5), start=1000 * number, options={"g": "10"})
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    return folder


def asked(films: Path | str = "", **how: Any) -> Request:
    return Request((str(films),), Narrating(Options(samples=2)), clip_seconds=1.0, **how)


def narrate(films: Path, output: str, fleet: Fleet | None = None) -> Summary:
    request = asked(films, output=output, quiet=True)
    found = request.find()
    model: Any = Scribe()
    return request.run(cast("Any", model), "scribe", found, request.choose_output(found), fleet=fleet)


def task(model: object | None = None) -> Task:
    return Task(asked(), pickle.dumps(model or Scribe()))


@pytest.fixture(scope="module")
def one(films: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process writes."""
    path = tmp_path_factory.mktemp("one") / "one.jsonl"
    assert narrate(films, str(path)).clips == 180 + 8 + 6 + 140 + 4
    return path.read_bytes()


class Here:
    """A worker in this process, which is lost after so many answers."""

    place = 0

    def __init__(self, task: Task, answers: float = float("inf")) -> None:
        self._worker, self._left, self._lock = Worker(task), answers, threading.Lock()

    def ask(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
        for answer in self._worker.rows(source, clips):
            with self._lock:
                self._left -= 1
            if self._left < 0:
                raise WorkerLost("a blow")
            yield answer

    def begun(self) -> bool:
        return True

    def cpu(self) -> float:
        return 0.0

    def close(self) -> None:
        """Who still waits for it hears of its end with its next answer, so it goes on."""


@pytest.mark.parametrize("size", [1, 3])
def test_rows_are_those_of_one_process(films: Path, one: bytes, size: int, tmp_path: Path) -> None:
    summary = narrate(films, f"{tmp_path}/out.jsonl", Fleet(lambda place: Here(task()), size, 2))
    assert (tmp_path / "out.jsonl").read_bytes() == one
    assert (summary.clips, len(summary.failed), summary.exit_code) == (338, 1, 1)
    assert "broken.mp4: " in summary.failed[0]


@pytest.mark.parametrize("seed", [pytest.param(i, marks=[pytest.mark.slow] if i > 2 else []) for i in range(20)])
def test_workers_that_die_again_and_again(films: Path, one: bytes, seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    lives = 30, 120  # three that die before they have answered one and the same clip would be the clip's fault
    fleet = Fleet(lambda place: Here(task(), draw.randrange(*lives)), 2, 2)
    narrate(films, f"{tmp_path}/out.jsonl", fleet)
    assert (tmp_path / "out.jsonl").read_bytes() == one
    assert fleet.died


def test_processes_of_which_one_is_killed(films: Path, one: bytes, tmp_path: Path) -> None:
    """And whose files are where the run's are."""
    links: list[LocalLink] = []

    def start(place: int) -> Link:
        links.append(LocalLink(task(Slow()), {}))
        return links[-1]

    fleet = Fleet(start, 2, 2)
    out = tmp_path / "out.jsonl"

    def kill() -> None:
        while not (out.is_file() and out.stat().st_size):
            time.sleep(0.01)
        os.kill(cast("int", links[0]._process.pid), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    narrate(films, str(out), fleet)
    killer.join()
    assert out.read_bytes() == one
    assert fleet.died == ["SIGKILL"]
    assert len(links) == 3
    assert not any(link._process.is_alive() for link in links)


@dataclass
class Slow(Scribe):
    """It takes its time, so that it can be killed at work."""

    pause: float = 0.01

    def narrate_clips(self, decoded: Any, *args: Any, **how: Any) -> Iterator[Any]:
        for rows in super().narrate_clips(decoded, *args, **how):
            time.sleep(self.pause)
            yield rows


def test_a_video_that_kills_every_worker_is_left_out(films: Path, one: bytes, tmp_path: Path) -> None:
    class Poisoned(Here):
        def ask(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
            for answer in super().ask(source, clips):
                if source.path.name == "3.mp4" and clips[0].start > 60:
                    raise WorkerLost("SIGSEGV")
                yield answer

    summary = narrate(films, f"{tmp_path}/out.jsonl", Fleet(lambda place: Poisoned(task()), 2, 2))
    assert [line.partition(": ")[0][-5:] for line in summary.failed] == ["n.mp4", "3.mp4"]
    assert "3 workers died of it one after the other, the last by SIGSEGV" in summary.failed[1]
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert set(lines) < set(one.splitlines())
    others = [line for line in one.splitlines() if b'3.mp4"' not in line]
    assert [line for line in lines if b'3.mp4"' not in line] == others
    assert len(lines) > len(others)  # of what comes before, rows are there


@dataclass
class Unopened(Scribe):
    """It cannot be opened where it goes, or takes the process with it."""

    def __reduce__(self) -> Any:
        return _refuse, ()


@dataclass
class Deadly(Scribe):
    def __reduce__(self) -> Any:
        return _die, ()


def _refuse() -> None:
    raise BundleError("bundle/: is gone; export it again")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Unopened(), "bundle/: is gone; export it again"),
        (Deadly(), "3 workers ended one after the other while they opened the model, the last by SIGKILL; take fewer"),
    ],
)
def test_a_model_that_no_worker_can_open_ends_the_run(model: Any, told: str, films: Path, tmp_path: Path) -> None:
    fleet = Fleet(lambda place: LocalLink(task(model), {}), 1, 2)
    with pytest.raises(LavilaError, match=told):
        narrate(films, f"{tmp_path}/out.jsonl", fleet)


@dataclass
class Broken(Scribe):
    """Its weights are no numbers from some clip on."""

    def narrate_clips(self, decoded: Any, *args: Any, **how: Any) -> Iterator[Any]:
        for rows in super().narrate_clips(decoded, *args, **how):
            if rows[0].start > 20:
                raise NotFiniteError("a clip")
            yield rows


def test_an_error_of_the_model_ends_the_run_and_what_was_written_stays(films: Path, one: bytes, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="a clip: the scores of its next word are not all finite"):
        narrate(films, f"{tmp_path}/out.jsonl", Fleet(lambda place: Here(task(Broken())), 2, 2))
    assert one.startswith((tmp_path / "out.jsonl").read_bytes())
    narrate(films, f"{tmp_path}/out.jsonl", Fleet(lambda place: Here(task()), 2, 2))
    assert (tmp_path / "out.jsonl").read_bytes() == one


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(KITCHEN, "a.mp4")
    shutil.copy(KITCHEN, "b.mp4")
    with Path("b.mp4").open("ab") as file:
        file.write(b"another video")
    return tmp_path


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("place")
def test_a_run_that_is_refused_ends_its_workers(capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own: one that waits for workers would never end."""
    assert run(["narrate", "a.mp4", "-q", "-o", "out.jsonl", "--threads", "1"]) == 0
    words = ["narrate", "a.mp4", "-q", "-o", "out.jsonl", "--seed", "3", "--processes", "2"]
    done = subprocess.run([sys.executable, "-m", "lavila_fast", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "was begun with seed 0" in done.stderr


@pytest.mark.usefixtures("place")
def test_workers_beside_metrics() -> None:
    """What tells metrics stays with the run."""
    pytest.importorskip("prometheus_client")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    assert narrated("--processes", "2", "--metrics", str(port)) == narrated("--threads", "1")


@pytest.mark.usefixtures("place")
def test_windows_that_overlap() -> None:
    """Many end where the video does, so that they may come in another order than they were asked for."""
    words = "--stride-seconds", "0.25", "--still", "score"
    assert narrated("--processes", "2", *words) == narrated("--threads", "1", *words)


@pytest.mark.usefixtures("place")
@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent to groups there")
def test_ctrl_c_reaches_workers_and_is_left_to_the_run() -> None:
    """At any time: also while they are started."""
    words = ["a.mp4", "b.mp4", "-o", "out.jsonl", "--stride-seconds", "0.1", "--processes", "2"]
    for seconds in (1.0, 2.5):
        command = [sys.executable, "-m", "lavila_fast", "narrate", *words]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert "Traceback" not in told
        assert "KeyboardInterrupt" not in told
        assert process.returncode in (0, 130, -signal.SIGINT), told  # the last while the command is loaded


def narrated(*words: str) -> tuple[bytes, bytes]:
    assert run(["narrate", "a.mp4", "b.mp4", "-q", *words, "-o", "out.jsonl", "--embed", "out.f.jsonl"]) == 0
    found = Path("out.jsonl").read_bytes(), Path("out.f.jsonl").read_bytes()
    for path in Path().glob("out.*"):
        path.unlink()
    return found


@pytest.mark.usefixtures("place")
def test_on_the_command_line_with_embeddings_beside() -> None:
    assert narrated("--processes", "2") == narrated("--threads", "1")


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_on_a_ray_cluster() -> None:
    pytest.importorskip("ray")
    assert narrated("--processes", "2", "--ray", "local") == narrated("--threads", "1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ray_nodes_whose_workers_are_killed(films: Path, one: bytes, two_nodes: Any, tmp_path: Path) -> None:
    """Twenty times kill -9 at random moments, of workers on either node; what is written is what one process writes."""
    cluster = Cluster(two_nodes.address, cpus=1, gpus=0)
    kills, deaths, nodes = 0, 0, set[int]()
    for seed in range(20):
        fleet, out = Fleet(lambda place: cluster.start(task(Slow(pause=0.05))), 3, 2), tmp_path / f"{seed}.jsonl"
        killer = Killer(two_nodes, out, random.Random(seed), len(one) // 6, most=min(4, 20 - kills))
        with killer:
            narrate(films, str(out), fleet)
        assert out.read_bytes() == one
        kills, deaths = kills + len(killer.killed), deaths + len(fleet.died)
        nodes |= set(killer.killed)
        if kills == 20:
            break
    assert kills == 20
    assert deaths > 10  # one that comes when a worker has answered all is not noticed
    assert len(nodes) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_node_that_goes(films: Path, one: bytes, two_nodes: Any, tmp_path: Path) -> None:
    cluster, out = Cluster(two_nodes.address, cpus=1, gpus=0), tmp_path / "out.jsonl"
    other = two_nodes.list_all_nodes()[1]

    def remove() -> None:
        while not (out.is_file() and out.stat().st_size):
            time.sleep(0.01)
        two_nodes.remove_node(other, allow_graceful=False)

    remover = threading.Thread(target=remove)
    remover.start()
    fleet = Fleet(lambda place: cluster.start(task(Slow(pause=0.05))), 2, 2)
    narrate(films, str(out), fleet)
    remover.join()
    assert out.read_bytes() == one


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_for_which_a_cluster_has_no_room(films: Path, one: bytes, two_nodes: Any, tmp_path: Path) -> None:
    """Nothing is asked of them, so the others do everything."""
    cluster, out = Cluster(two_nodes.address, cpus=1, gpus=0), tmp_path / "out.jsonl"
    narrate(films, str(out), Fleet(lambda place: cluster.start(task()), 7, 1))
    assert out.read_bytes() == one


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_that_lacks_a_package(
    films: Path, two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ModuleType("lacking_there")
    monkeypatch.setitem(sys.modules, "lacking_there", here)
    monkeypatch.setattr(here, "Model", type("Model", (), {"__module__": "lacking_there"}), raising=False)
    cluster = Cluster(two_nodes.address, cpus=1, gpus=0)
    fleet = Fleet(lambda place: cluster.start(task(here.Model())), 2, 2)
    with pytest.raises(LavilaError, match="No module named 'lacking_there'; install the same packages where they run"):
        narrate(films, f"{tmp_path}/out.jsonl", fleet)


def test_a_worker_that_has_not_begun_is_asked_nothing(films: Path, one: bytes, tmp_path: Path) -> None:
    class Late(Here):
        """Of the second place, for which there never is room."""

        def begun(self) -> bool:
            return self.place != 1

        def ask(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
            assert self.place != 1
            return super().ask(source, clips)

    def start(place: int) -> Link:
        late = Late(task())
        late.place = place
        return late

    narrate(films, f"{tmp_path}/out.jsonl", Fleet(start, 3, 2))
    assert (tmp_path / "out.jsonl").read_bytes() == one


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with two processors each, on this machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine they would hardly begin
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where `Slow` is
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    ray.shutdown()  # of a cluster that a test before may have left
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=2)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


class Killer:
    """Kills workers of a cluster, one after the other; `killed` are their nodes.

    Each after the output has grown by so many bytes: three deaths without an answer between would be a clip's fault.
    """

    def __init__(self, nodes: Any, out: Path, draw: random.Random, growth: int, most: int) -> None:
        self._nodes, self._out, self._draw, self._growth, self._most = nodes, out, draw, growth, most
        self._over, self._thread = threading.Event(), threading.Thread(target=self._kill)
        self.killed: list[int] = []

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill(self) -> None:
        seen, opening = -self._growth, False
        while len(self.killed) < self._most and not self._over.wait(self._draw.random() * 0.5):
            size = self._out.stat().st_size if self._out.is_file() else 0
            workers = [one for one in self._workers() if not (opening and one[2])]
            if size > seen + self._growth and workers:
                node, number, opening = self._draw.choice(workers)
                os.kill(number, signal.SIGKILL)
                self.killed.append(node)
                seen = size

    def _workers(self) -> list[tuple[int, int, bool]]:
        """Node and process of each worker that is alive, and whether it is opening its model.

        Three of those in a row would be the model's fault.
        """
        homes = {
            process.process.pid: number
            for number, node in enumerate(self._nodes.list_all_nodes())
            for process in node.all_processes["raylet"]
        }
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                name, stat = (path / "cmdline").read_bytes(), (path / "stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            if name.startswith(b"ray::") and b"_Actor" in name and parent in homes:
                found.append((homes[parent], int(path.name), b"__init__" in name))
        return sorted(found)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--devices", "0,0"], "--devices 0,0: give GPUs by number, each once"),
        (["--devices", "0,"], "--devices 0,: give GPUs by number"),
        (["--devices", "0"], "--devices 0: this model runs on the CPU; see --engine"),
        (["--ray", "auto"], "--ray auto: say how many workers there are to be, --processes N"),
        (["--ray", "auto", "--processes", "2", "--devices", "1"], "--devices: on a cluster Ray says who has which"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_makes_no_sense_is_said_in_a_line(words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["narrate", "a.mp4", "-q", "-o", "out.jsonl", *words]) == 2
    assert capfd.readouterr().err.startswith(f"error: {told}")


def test_workers_share_threads_and_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lavila_fast.archive.fleet.muster.available_cpus", lambda: 8)
    assert Workers(3).threads_each(None) == 2
    assert Workers(16).threads_each(None) == 1
    assert Workers(3).threads_each(5) == 5
    assert Workers(1).threads_each(None) is None
    monkeypatch.setattr("lavila_fast.archive.fleet.muster.visible_gpus", lambda: ["0", "1", "4"])

    def gpus(workers: Workers) -> list[str]:
        return [one["CUDA_VISIBLE_DEVICES"] for one in workers.places("cuda")]

    assert gpus(Workers()) == ["0", "1", "4"]
    assert gpus(Workers(devices=("4",))) == ["4"]
    assert gpus(Workers(4, ("1", "4"))) == ["1", "4", "1", "4"]
    assert Workers(1).places("cuda") == []
    assert Workers().places("cpu") == []
    with pytest.raises(InputError, match=r"--devices 3: there are 0, 1, 4"):
        Workers(devices=("3",)).places("cuda")
