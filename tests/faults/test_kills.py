"""kill -9 at random moments of a tuning; the soak does a hundred."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from _faults import Figure
from _faults_kills import kills

pytestmark = pytest.mark.faults


def test_a_killed_tuning_loses_the_trial_in_progress_and_goes_on(record: Callable[[Iterable[Figure]], None]) -> None:
    record(kills(20, seed=5))
