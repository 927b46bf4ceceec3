"""Where a tuning is kept, and the names of sessions."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.records import Environment
from tunebook.store import Location, new_session_id


def test_the_default_is_one_folder_an_environment(tmp_path: Path, environment: Environment) -> None:
    with envs.TUNEBOOK_CACHE_DIR.override(tmp_path / "kept"):
        location = Location.of(environment, None)
    folder = tmp_path / "kept" / "autotune" / environment.digest
    assert location.cache == folder / "winners.json"
    assert location.runs == folder / "runs"
    assert location.environment_file == folder / "environment.json"
    assert (location.stem, location.explicit) == ("winners", False)
    assert not (tmp_path / "kept").exists()


def test_an_explicit_cache_has_its_runs_beside_it(tmp_path: Path, environment: Environment) -> None:
    location = Location.of(environment, tmp_path / "tuned.json")
    assert location.cache == tmp_path / "tuned.json"
    assert location.runs == tmp_path / "runs"
    assert location.environment_file is None
    assert (location.stem, location.explicit) == ("tuned", True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        location.explicit = False  # type: ignore[misc]


def test_a_home_is_expanded_and_a_relative_path_made_absolute(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Location.of(environment, "~/a.json").cache == tmp_path / "a.json"
    assert Location.of(environment, "b.json").cache == tmp_path / "b.json"


def test_a_directory_is_refused_by_name(tmp_path: Path, environment: Environment) -> None:
    with pytest.raises(UsageError, match=re.escape(f"cache={tmp_path} is a directory")):
        Location.of(environment, tmp_path)


@pytest.mark.parametrize(("cache", "says"), [("a\0b", "null character"), ("~nobody-of-that-name/a.json", "in full")])
def test_what_cannot_be_a_path_is_refused(environment: Environment, cache: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Location.of(environment, cache)
    assert "\0" not in str(caught.value)


def test_a_path_through_a_file_is_left_to_reading_and_publishing(tmp_path: Path, environment: Environment) -> None:
    (tmp_path / "file").write_text("")
    assert Location.of(environment, tmp_path / "file" / "a.json").explicit
    assert Location.of(environment, tmp_path / ("n" * 300 + ".json")).explicit


def test_session_ids_are_short_hexadecimal_and_differ() -> None:
    ids = {new_session_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{12}", name) for name in ids)
