"""The public door of the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tunebook import records, store

DOOR = {
    "MAX_CACHE_BYTES",
    "MAX_PINS_BYTES",
    "MAX_RUN_BYTES",
    "CacheContents",
    "Location",
    "Miss",
    "MissKind",
    "Pins",
    "Policy",
    "Published",
    "Recorded",
    "RecordedRace",
    "ResolvedPolicy",
    "Run",
    "RunWriter",
    "better_supported",
    "new_session_id",
    "pins_path",
    "publish",
    "read_any",
    "read_cache",
    "read_pins",
    "read_run",
    "resolve_policy",
    "update_pins",
}


def test_the_door() -> None:
    assert set(store.__all__) == DOOR
    assert all(hasattr(store, name) for name in DOOR)


def test_nothing_heavy_comes_with_it() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(records.__file__).parents[2])!r}); import tunebook.store; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
