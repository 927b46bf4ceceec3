"""Many processes publish to one cache, and some are killed while they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from _faults import Figure
from _faults_publish import kills, publishing

pytestmark = pytest.mark.faults

Record = Callable[[Iterable[Figure]], None]


def test_sixteen_processes_lose_nothing(record: Record) -> None:
    record(publishing(processes=16, publishes=25, repetitions=1, seed=0))


def test_a_process_that_is_killed_at_any_step_harms_nobody(record: Record) -> None:
    record(kills(count=26, seed=0))
