"""A worker process: its results, every way in which it can end, its limits, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunebook.measure import Finding, Host, HostError, Stage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what ends with what is told by /proc")

#: A job is the name of a function here, which gets the rest of the payload.
SERVER = """
import os, signal, subprocess, sys, threading, time
from tunebook.measure import limit_memory

class Server:
    def __init__(self):
        self.done = []

    def load(self, payload):
        what = payload.decode()
        if what == "raise":
            raise ValueError("no such module")
        if what == "exit":
            os._exit(3)
        if what == "sleep":
            time.sleep(60)
        if what == "thread":
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        self.done.append(what)
        return b"loaded " + payload

    def run(self, payload, fds, at):
        what, _, rest = payload.decode().partition(" ")
        self.done.append(what)
        return globals()[what](self, rest, fds, at) or b""

def echo(server, rest, fds, at):
    return rest.encode()

def history(server, rest, fds, at):
    return ",".join(server.done).encode()

def pid(server, rest, fds, at):
    return str(os.getpid()).encode()

def parent(server, rest, fds, at):
    return str(os.getppid()).encode()

def read(server, rest, fds, at):
    return os.pread(fds[0], 100, 0)

def kill(server, rest, fds, at):
    at(1)
    os.kill(os.getpid(), int(rest))

def leave(server, rest, fds, at):
    at(1)
    os._exit(int(rest))

def fail(server, rest, fds, at):
    at(1)
    raise RuntimeError(rest)

def abort_in_words(server, rest, fds, at):
    print(rest, file=sys.stderr, flush=True)
    os.abort()

def hang(server, rest, fds, at):
    at(1)
    while True:
        pass

def hang_with_child(server, rest, fds, at):
    at(1)
    subprocess.Popen(["sh", "-c", f"sleep 600 & echo $! > {rest}"], start_new_session=True).wait()
    time.sleep(600)

def steps(server, rest, fds, at):
    for number in range(1, 5):
        at(number)
        time.sleep(0.4)

def shout(server, rest, fds, at):
    for stream in (sys.stdout, sys.stderr):
        for _ in range(64):
            stream.write("x" * 65536)
        stream.flush()

def shut(server, rest, fds, at):
    os.closerange(3, 200)
    time.sleep(600)

def garble(server, rest, fds, at):
    for fd in range(3, 64):
        try:
            os.write(fd, b"\\xff" * 64)
        except OSError:
            pass
    time.sleep(600)

def kill_parent(server, rest, fds, at):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)

def fill(server, rest, fds, at):
    limit_memory(int(rest))
    held = []
    try:
        for _ in range(64):
            held.append(bytearray(16 << 20))
    except MemoryError:
        del held[:]
        limit_memory(None)
        return b"memory " + str(len(bytearray(2 * int(rest)))).encode()
"""

STAGES = [Stage("start", 30.0), Stage("the body", 30.0), *(Stage(f"case {i}", 30.0) for i in range(3))]
SHORT = [Stage("start", 30.0), *(Stage(f"case {i}", 1.0) for i in range(4))]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Host]]:
    """``make(start_s=…)``: a host of the server above; closed at the end."""
    (tmp_path / "isolate_server.py").write_text(SERVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    hosts: list[Host] = []

    def made(start_s: float = 60.0) -> Host:
        hosts.append(Host("isolate_server:Server", start_s=start_s))
        return hosts[-1]

    yield made
    for host in hosts:
        host.close()


@pytest.fixture
def host(make: Callable[..., Host]) -> Host:
    return make()


def do(host: Host, job: str, stages: list[Stage] = STAGES, fds: tuple[int, ...] = ()) -> str | Finding:
    host.ready()
    got = host.run(job.encode(), fds, stages)
    return got if isinstance(got, Finding) else got.decode()


def runs(process: int) -> bool:
    """Whether a process runs: one that has ended, or is stopped for good as a zombie, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_jobs_run_one_after_another_in_one_worker_that_has_what_was_loaded(host: Host) -> None:
    assert host.load(b"this") == b"loaded this"
    assert do(host, "echo hello there") == "hello there"
    assert do(host, "history") == "this,echo,history"
    assert (host.jobs, host.started) == (2, 1)


def test_a_job_gets_descriptors(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("what it holds")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert do(host, "read", fds=(fd,)) == "what it holds"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("job", "reason", "words"),
    [
        (f"kill {signal.SIGSEGV:d}", "crash", "the body: SIGSEGV in isolate_server.py:"),
        (f"kill {signal.SIGABRT:d}", "crash", "the body: SIGABRT in isolate_server.py:"),
        (f"kill {signal.SIGILL:d}", "crash", "the body: SIGILL"),
        (f"kill {signal.SIGKILL:d}", "memory", "the body: killed from outside"),
        ("abort_in_words std::bad_alloc", "memory", "start: SIGABRT"),
        ("leave 3", "crash", "the body: it ended its process with exit code 3"),
        ("leave 0", "crash", "the body: it ended its process with exit code 0"),
        ("fail here", "crash", "the body: it ended its process with exit code 1"),
        ("shut", "crash", "start: it broke the connection"),
        ("garble", "crash", "start: it broke the connection"),
        ("kill_parent", "crash", "the supervising process ended with it"),
    ],
)
def test_each_end_of_a_worker_is_told_and_the_next_job_has_another(
    host: Host, job: str, reason: str, words: str
) -> None:
    host.load(b"this")
    first = do(host, "pid")
    found = do(host, job)
    assert isinstance(found, Finding)
    assert found.reason == reason
    assert words in found.detail
    assert found.harm
    assert not host.alive
    assert do(host, "history") == "this,history"
    assert do(host, "pid") != first
    assert host.started == 2


def test_a_job_that_hangs_is_ended_with_all_that_it_started(host: Host, tmp_path: Path) -> None:
    worker = do(host, "pid")
    found = do(host, f"hang_with_child {tmp_path / 'child'}", [Stage("start", 30.0), Stage("case 0", 2.0)])
    assert found == Finding("timeout", "case 0: not done within 2 s", harm=True)
    child = int((tmp_path / "child").read_text())
    assert not runs(int(worker))  # type: ignore[arg-type]
    assert not runs(child)


def test_each_stage_has_its_own_time(host: Host) -> None:
    assert do(host, "steps", SHORT) == ""
    found = do(host, "hang", [Stage("start", 30.0), Stage("case 0", 0.5)])
    assert isinstance(found, Finding)
    assert found.reason == "timeout"


def test_what_a_worker_writes_reaches_nobody_and_stops_nothing(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    assert do(host, "shout") == ""
    assert capfd.readouterr() == ("", "")


def test_memory_is_limited_until_the_limit_ends(host: Host) -> None:
    assert do(host, f"fill {64 << 20}") == f"memory {128 << 20}"
    assert host.alive


def test_an_idle_worker_is_stopped(host: Host) -> None:
    worker = do(host, "pid")
    assert soon(lambda: Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert do(host, "pid") == worker


def test_a_worker_that_ended_while_it_was_idle_is_nobodys_fault(host: Host) -> None:
    worker = do(host, "pid")
    os.kill(int(worker), signal.SIGKILL)  # type: ignore[arg-type]
    assert soon(lambda: not os.path.exists(f"/proc/{worker}"))
    assert host.ready() == 0
    assert do(host, "echo again") == "again"


def test_a_supervisor_that_ended_meanwhile_is_replaced_with_all_that_was_loaded(host: Host) -> None:
    host.load(b"this")
    supervisor = int(do(host, "parent"))  # type: ignore[arg-type]
    worker = int(do(host, "pid"))  # type: ignore[arg-type]
    os.kill(supervisor, signal.SIGKILL)
    assert soon(lambda: not runs(worker)), "a worker dies with its supervisor"
    assert do(host, "history") == "this,history"


@pytest.mark.parametrize(("what", "words"), [("raise", "ValueError: no such module"), ("exit", "ended with code 3")])
def test_a_failing_import_is_an_error_in_words(host: Host, what: str, words: str) -> None:
    with pytest.raises(HostError, match=words):
        host.load(what.encode())
    assert host.load(b"this") == b"loaded this"


def test_an_import_that_hangs_is_an_error(make: Callable[..., Host]) -> None:
    host = make(start_s=2.0)
    with pytest.raises(HostError, match="longer than 2 s"):
        host.load(b"sleep")


def test_after_an_import_that_starts_threads_workers_are_not_forked(host: Host) -> None:
    host.load(b"thread")
    supervisor = do(host, "parent")
    assert do(host, "history") == "thread,parent,history", "it imports for itself"
    found = do(host, f"kill {signal.SIGSEGV:d}")
    assert isinstance(found, Finding)
    assert found.reason == "crash"
    assert do(host, "parent") == supervisor


def test_a_server_that_is_not_there_is_an_error() -> None:
    host = Host("no_such_module:Server", start_s=60.0)
    try:
        with pytest.raises(HostError, match="no_such_module"):
            host.load(b"this")
    finally:
        host.close()


def test_closing_leaves_nothing(host: Host, tmp_path: Path) -> None:
    worker, supervisor = int(do(host, "pid")), int(do(host, "parent"))  # type: ignore[arg-type]
    open_before = len(os.listdir("/proc/self/fd"))
    host.close()
    assert not runs(worker)
    assert not runs(supervisor)
    assert len(os.listdir("/proc/self/fd")) < open_before
    host.close()
