"""Phases: what can be asked for, and what is refused before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tunebook.engine import ModelRunner, PhaseRequest, requests
from tunebook.engine._phases import DECODE_CONTEXT, MAX_TOKENS, merged
from tunebook.errors import UsageError


def test_requests_are_sorted_and_each_of_a_kind() -> None:
    assert [str(r) for r in requests((16, 1, 1), (512, 128))] == ["decode 1", "decode 16", "prefill 128", "prefill 512"]
    with pytest.raises(UsageError, match="no phase"):
        requests((), ())


@pytest.mark.parametrize(("decode", "prefill"), [((0,), ()), ((), (-1,))])
def test_a_size_below_one_is_refused(decode: tuple[int, ...], prefill: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        requests(decode, prefill)


def test_the_largest_sizes_are_stated_and_kept() -> None:
    most = MAX_TOKENS // DECODE_CONTEXT
    assert requests((most,), (MAX_TOKENS,))
    for decode, prefill in (((most + 1,), ()), ((), (MAX_TOKENS + 1,)), ((10**11,), ())):
        with pytest.raises(UsageError, match=str(MAX_TOKENS)) as error:
            requests(decode, prefill)
        assert str(*decode, *prefill) in str(error.value)
    with pytest.raises(UsageError, match=str(MAX_TOKENS)):
        PhaseRequest("prefill", 2**11, 2**10)


def test_a_dummy_run_of_an_absurd_size_is_refused(tiny_model: Callable[..., Any]) -> None:
    with ModelRunner(tiny_model(), threads=1) as runner, pytest.raises(UsageError, match=str(MAX_TOKENS)):
        runner.dummy_run("decode", 10**9)


def test_phases_of_a_file_count_only_where_they_can_be() -> None:
    known = ("decode 4", "prefill 64", "decode 99999999999", "decode 0", "prefill ²", "sing 3", "decode", "")
    assert [str(r) for r in merged(requests((1,), ()), known)] == ["decode 1", "decode 4", "prefill 64"]


def test_a_decode_step_repeats_where_a_sliding_window_is_full(tiny_model: Callable[..., Any]) -> None:
    with ModelRunner(tiny_model("gpt_oss"), threads=1, ops=("linear",)) as runner:
        assert runner.loaded.model.config.sliding_window < DECODE_CONTEXT, "this test would prove nothing"
        first = runner.dummy_run("decode", 2).clone()
        for _ in range(3):
            assert torch.equal(runner.dummy_run("decode", 2), first)
