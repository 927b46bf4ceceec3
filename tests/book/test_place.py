"""Finding this environment's runs without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunebook.book import place_of
from tunebook.book._place import machine_facts
from tunebook.devices import device_of
from tunebook.errors import StoreError
from tunebook.records import Environment
from tunebook.store import Location


def make(threads: int) -> Location:
    location = Location.of(Environment(hard={**machine_facts(), "threads": str(threads)}))
    location.runs.mkdir(parents=True)
    return location


def test_the_facts_are_those_of_the_environment_but_for_the_threads() -> None:
    hard = dict(device_of("cpu").environment().hard)
    del hard["threads"]
    assert machine_facts() == hard


def test_the_only_thread_count_is_meant() -> None:
    location = make(1)
    place = place_of()
    assert (place.cache, place.runs, place.threads) == (location.cache, location.runs, "1")


def test_the_thread_count_is_the_argument_else_the_variable_else_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    usual = torch.get_num_threads()
    locations = {count: make(count) for count in {1, 2, usual}}
    assert place_of().cache == locations[usual].cache
    monkeypatch.setenv("TUNEBOOK_THREADS", "2")
    assert place_of().cache == locations[2].cache
    assert place_of(threads=1).cache == locations[1].cache


def test_thread_counts_that_torch_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    make(1)
    make(2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    with pytest.raises(StoreError, match="1, 2 threads, torch takes 3; say --threads"):
        place_of()


def test_nothing_was_tuned_yet() -> None:
    with pytest.raises(StoreError, match="nothing was tuned on this machine yet; `tunebook tune`"):
        place_of()


def test_a_thread_count_that_nothing_was_tuned_with() -> None:
    make(1)
    with pytest.raises(StoreError, match="nothing was tuned with 7 threads here; `tunebook tune`"):
        place_of(threads=7)


def test_a_cache_by_its_path(tmp_path: Path) -> None:
    place = place_of(tmp_path / "tuned.json")
    assert (place.cache, place.runs, place.threads) == (tmp_path / "tuned.json", tmp_path / "runs", None)


def test_the_book_needs_no_torch(cli_environment: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    make_place = "from tunebook.book import place_of, open_run\ntry:\n place_of()\nexcept Exception: pass\n"
    code = f"import sys\n{make_place}print([name for name in ('torch', 'pandas') if name in sys.modules])"
    environment = cli_environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
