"""Twelve kinds of bad tactic in one tuning, and a tuning that is killed while one of them runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from _faults import Figure
from _faults_tactics import bad_tactics, killed_tuning

pytestmark = pytest.mark.faults

Record = Callable[[Iterable[Figure]], None]


def test_bad_tactics_are_rejected_for_the_right_reason_and_leave_nothing(record: Record) -> None:
    record(bad_tactics())


def test_a_tuning_that_is_killed_leaves_nothing_running(record: Record) -> None:
    record(killed_tuning())
