"""Twenty thousand damaged files, read by what reads them and served from: no traceback, no tactic that is not offered."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from _faults import Figure

FILES = 20_000


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.usefixtures("clean_ops")
def test_damaged_files(record: Callable[[Iterable[Figure]], None]) -> None:
    from _faults_files import mutated_files

    record(mutated_files(FILES, seed=20_000))
