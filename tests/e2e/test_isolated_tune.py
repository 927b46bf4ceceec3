"""`tunebook tune` as users run it, with a kernel of theirs that crashes: it goes on, and tells why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]

KERNEL = """
import os
from pathlib import Path

import torch
import tunebook as tb

@tb.kernels.linear.runner("mine", version="1")
def mine(x, weight, bias):
    with Path(__file__).with_name("calls").open("a") as file:
        file.write("call\\n")
    os.abort()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no isolation there")
def test_a_crash_ends_nothing(cli_interpreter: Cli, tmp_path: Path) -> None:
    file = tmp_path / "my_kernel.py"
    file.write_text(KERNEL)
    options = ("--op", "linear", "--only-runner", "mine", "--decode", "1", "--prefill", "", "--budget", "60")
    done = cli_interpreter(
        tmp_path / "home", "tune", "tiny-moe", *options, "--with", file, "--json", TUNEBOOK_ISOLATE="unproven"
    )
    document = json.loads(done.stdout)
    calls = (tmp_path / "calls").read_text().count("call")
    assert document["problems"]["tuned"] == calls > 0
    assert document["problems"]["rejected_tactics"] == calls
    assert Path(document["run"]).read_text().count("SIGABRT in my_kernel.py:") >= calls


def test_another_word_is_refused_in_one_line(cli: Cli, tmp_path: Path) -> None:
    done = cli(tmp_path / "home", "tune", "tiny-moe", "--isolate", "sometimes", code=2)
    assert done.stderr.strip().endswith("--isolate 'sometimes' is none of always, unproven, never")
