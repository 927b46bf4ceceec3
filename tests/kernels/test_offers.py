"""What shipped runners offer: the same whatever the threads when they were declared, and what fits the threads that are there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tunebook as tb
from tunebook.kernels._native import unavailable
from tunebook.records import Problem

_SPACES = """
import json, tunebook.kernels
from tunebook.dispatch import OPS
print(json.dumps({f"{name}.{r}": runner.offered.space for name, op in OPS.items() for r, runner in op.runners.items()}))
"""


def test_a_verdict_is_about_the_same_tactics_whatever_the_threads_at_the_import(
    cli_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", _SPACES],
            env=cli_environment(tmp_path, OMP_NUM_THREADS=threads),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(json.loads(told[0])) >= len(("linear", "experts", "attend", "qkv", "router"))


@pytest.mark.skipif(unavailable() is not None, reason="the native kernels are not here")
@pytest.mark.parametrize(("count", "threads"), [(1, {0}), (2, {0, 1})])
def test_attention_on_one_thread_is_no_tactic_of_its_own_where_there_is_but_one(count: int, threads: set[int]) -> None:
    runner = tb.kernels.attend.runners["native"]
    problem = Problem.parse("attend|Hq=4,Hk=2,D=64|bf16|B=1,T=128")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert {tactic.kwargs["threads"] for tactic in runner.space_of(problem)} == threads
    finally:
        torch.set_num_threads(before)
