"""tunebook's own variables: defaults, the alias of the cache switch, rows, check, misspelt names."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tunebook.envs import Envs, envs
from tunebook.errors import EnvironmentVariableError

FOREIGN = "SGLANG_FLASHINFER_AUTOTUNE_CACHE"


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_what_lost_against_the_own_name_is_logged_once_where_it_differs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="tunebook")
    registry = Envs({"TUNEBOOK_AUTOTUNE_CACHE": "1", FOREIGN: "0"})
    for _ in range(2):
        assert registry.TUNEBOOK_AUTOTUNE_CACHE.get() is True
    (message,) = messages(caplog, logging.INFO)
    assert f"{FOREIGN}=0" in message
    assert "TUNEBOOK_AUTOTUNE_CACHE=1" in message
    caplog.clear()
    assert Envs({"TUNEBOOK_AUTOTUNE_CACHE": "1", FOREIGN: "yes"}).TUNEBOOK_AUTOTUNE_CACHE.get() is True
    assert caplog.records == []


def test_a_blank_own_name_lets_the_alias_speak() -> None:
    registry = Envs({"TUNEBOOK_AUTOTUNE_CACHE": " ", FOREIGN: "0"})
    assert registry.TUNEBOOK_AUTOTUNE_CACHE.get() is False
    assert registry.TUNEBOOK_AUTOTUNE_CACHE.source() == f"alias {FOREIGN}"


def test_set_beats_an_alias_and_clear_leaves_it() -> None:
    registry = Envs({FOREIGN: "0"})
    registry.TUNEBOOK_AUTOTUNE_CACHE.set(True)
    assert registry.TUNEBOOK_AUTOTUNE_CACHE.get() is True
    registry.TUNEBOOK_AUTOTUNE_CACHE.clear()
    assert registry.TUNEBOOK_AUTOTUNE_CACHE.get() is False
    with registry.TUNEBOOK_AUTOTUNE_CACHE.override(True):
        assert registry.TUNEBOOK_AUTOTUNE_CACHE.get() is True
    assert registry.environ == {FOREIGN: "0"}


def test_a_bad_value_in_a_foreign_alias_is_one_warning_and_the_default(caplog: pytest.LogCaptureFixture) -> None:
    registry = Envs({FOREIGN: "maybe"})
    for _ in range(3):
        assert registry.TUNEBOOK_AUTOTUNE_CACHE.get() is True
    assert not registry.TUNEBOOK_AUTOTUNE_CACHE.is_set()
    assert registry.TUNEBOOK_AUTOTUNE_CACHE.source() == "default"
    (message,) = messages(caplog, logging.WARNING)
    assert f"{FOREIGN}='maybe'" in message
    assert "SGLang" in message


def test_a_bad_own_name_is_an_error_even_where_an_alias_is_good() -> None:
    variable = Envs({"TUNEBOOK_AUTOTUNE_CACHE": "maybe", FOREIGN: "0"}).TUNEBOOK_AUTOTUNE_CACHE
    with pytest.raises(EnvironmentVariableError, match="TUNEBOOK_AUTOTUNE_CACHE='maybe'"):
        variable.get()
    assert variable.is_set()
    assert variable.source() == "TUNEBOOK_AUTOTUNE_CACHE"


def test_defaults_of_the_registry() -> None:
    import platformdirs

    registry = Envs({})
    assert {variable.field.name: variable.get() for variable in registry.variables()} == {
        "TUNEBOOK_AUTOTUNE": True,
        "TUNEBOOK_AUTOTUNE_CACHE": True,
        "TUNEBOOK_CACHE_DIR": Path(platformdirs.user_cache_dir("tunebook", appauthor=False)),
        "TUNEBOOK_CACHE_PATH": (),
        "TUNEBOOK_BUDGET_S": 120.0,
        "TUNEBOOK_ISOLATE": "unproven",
        "TUNEBOOK_ISOLATE_TIMEOUT_S": 60.0,
        "TUNEBOOK_FLASHINFER": False,
        "TUNEBOOK_RANK_TIMEOUT_S": 120.0,
        "TUNEBOOK_COVERAGE": False,
        "TUNEBOOK_COVERAGE_FILE": None,
        "TUNEBOOK_THREADS": None,
        "TUNEBOOK_LOG_LEVEL": "INFO",
        "TUNEBOOK_MEMORY_LIMIT": None,
        "TUNEBOOK_MEMORY_LIMIT_GB": None,
    }
    assert all(variable.source() == "default" for variable in registry.variables())


def test_the_shared_registry_is_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_THREADS", "3")
    assert envs.TUNEBOOK_THREADS.get() == 3
    with envs.TUNEBOOK_THREADS.override(2):
        assert os.environ["TUNEBOOK_THREADS"] == "2"
    assert os.environ["TUNEBOOK_THREADS"] == "3"


# ------------------------------------------------------------------ rows, check, misspelt names


def test_rows_show_wrong_values_instead_of_raising() -> None:
    registry = Envs({"TUNEBOOK_THREADS": "many", "TUNEBOOK_BUDGET_S": "60", "TUNEBOOK_CACHE_DIR": "/c", FOREIGN: "off"})
    registry.environ["TUNEBOOK_CACHE_PATH"] = os.pathsep.join(("/a", "/b"))
    rows = {row.name: row for row in registry.rows()}
    assert list(rows) == [field.name for field in Envs.fields()]
    threads = rows["TUNEBOOK_THREADS"]
    assert threads.value is None
    assert threads.value_text == ""
    assert threads.error is not None
    assert "'many'" in threads.error
    assert threads.source == "TUNEBOOK_THREADS"
    assert threads.type == "integer or none"
    budget = rows["TUNEBOOK_BUDGET_S"]
    assert (budget.value, budget.value_text, budget.default, budget.default_text) == (60.0, "60", 120.0, "120")
    assert budget.error is None
    cache = rows["TUNEBOOK_AUTOTUNE_CACHE"]
    assert (cache.value, cache.value_text, cache.source) == (False, "false", f"alias {FOREIGN}")
    assert cache.aliases == (FOREIGN,)
    assert rows["TUNEBOOK_CACHE_DIR"].value == str(Path("/c"))
    assert rows["TUNEBOOK_CACHE_PATH"].value == (str(Path("/a")), str(Path("/b")))
    json.dumps([asdict(row) for row in rows.values()])


def test_misspelt_names_are_warned_about_once_with_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    registry = Envs(
        {
            "TUNEBOOK_AUTOTUNE_CACHES": "0",
            "TUNEBOOK_BUGDET_S": "1",
            "tunebook_threads": "2",
            "TUNEBOOK_ZZZ": "1",
            "TUNEBOOK_LOG_LEVEL": "error",
            "PATH": "/bin",
        }
    )
    assert registry.misspelt() == {
        "TUNEBOOK_AUTOTUNE_CACHES": "TUNEBOOK_AUTOTUNE_CACHE",
        "TUNEBOOK_BUGDET_S": "TUNEBOOK_BUDGET_S",
        "tunebook_threads": "TUNEBOOK_THREADS",
        "TUNEBOOK_ZZZ": None,
    }
    registry.check()
    registry.check()
    warnings = messages(caplog, logging.WARNING)
    assert len(warnings) == 4
    assert "did you mean TUNEBOOK_AUTOTUNE_CACHE?" in warnings[0]
    assert any(text.startswith("TUNEBOOK_ZZZ ") and "tunebook env" in text for text in warnings)


def test_check_names_every_wrong_variable_at_once() -> None:
    with pytest.raises(EnvironmentVariableError) as caught:
        Envs({"TUNEBOOK_THREADS": "0", "TUNEBOOK_LOG_LEVEL": "LOUD", "TUNEBOOK_AUTOTUNE": "1"}).check()
    first, second = str(caught.value).splitlines()
    assert first.startswith("TUNEBOOK_THREADS='0'")
    assert second.startswith("TUNEBOOK_LOG_LEVEL='LOUD'")
    Envs({}).check()
