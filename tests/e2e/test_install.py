"""Installing from source where nothing can compile: it succeeds, without the native runners, and doctor says so."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What a build may find on this machine; no compiler is among it.
TOOLS = ("cmake", "ninja", "sh", "env", "uname", "cat", "ls", "rm", "mkdir")


@pytest.mark.slow
def test_without_a_compiler_tunebook_installs_without_the_native_kernels(tmp_path: Path) -> None:
    source, tools, wheels, site = (tmp_path / name for name in ("source", "tools", "wheels", "site"))
    for name in ("src", "native", "pyproject.toml", "README.md", "LICENSE"):
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "build"))
        else:
            shutil.copy(origin, source / name)
    tools.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    blind = {**os.environ, "PATH": str(tools), "CC": "/bin/false", "CXX": "/bin/false"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], env=blind, check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=120)

    # The packages of this environment, and of tunebook the one just installed.
    path = os.pathsep.join((str(site), sysconfig.get_path("purelib")))
    doctor = subprocess.run(
        [sys.executable, "-S", "-m", "tunebook", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": path, "TUNEBOOK_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert doctor.returncode == 0, doctor.stderr
    runners = {(r["op"], r["runner"]): r["unavailable"] for r in json.loads(doctor.stdout)["runners"]}
    for op in ("linear", "experts"):
        for runner in ("native", "native_rows"):
            assert "not compiled" in runners[op, runner]
            assert "apt install g++" in runners[op, runner]
        assert runners[op, "torch"] is None


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not (shutil.which("c++") or shutil.which("g++")),
    reason="the native kernels are for x86-64, and need a compiler when tunebook is installed",
)
def test_here_the_native_kernels_are_compiled_and_can_run() -> None:
    """`make setup` compiled them: what the other tests say of the native runners is about real kernels."""
    from tunebook.kernels import experts, linear

    for op in (linear, experts):
        assert op.runners["native"].requirement.reason() is None
        assert len(op.runners["native"].combinations) > 20
