"""`tunebook show` tells of the pins beside a cache."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tunebook.records import SCHEMA, Tactic
from tunebook.store import pins_path, update_pins


def test_show_lists_pins_and_what_is_wrong_with_them(
    cli_inside: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "c.json"
    cache.write_text(json.dumps({"schema": SCHEMA, "environment": {"hard": {"device": "cpu"}}, "verdicts": {}}))
    assert "Pins" not in cli_inside(tmp_path, "show", cache).stdout
    update_pins(pins_path(cache), {"linear@M≤16": Tactic.parse("native[block=32]"), "experts": Tactic.parse("torch")})
    told = cli_inside(tmp_path, "show", cache).stdout
    assert all(text in told for text in ("Pins", "linear@M≤16", "native[block=32]", "experts"))
    document = json.loads(cli_inside(tmp_path, "show", cache, "--json").stdout)
    assert document["pins"] == {"experts": "torch", "linear@M≤16": "native[block=32]"}
    pins_path(cache).write_text('[pins]\n"linear" = "torch["\n')
    assert "pin linear: entry: tactic 'torch['" in cli_inside(tmp_path, "show", cache).stdout
    pins_path(cache).write_text("[pins\n")
    document = json.loads(cli_inside(tmp_path, "show", cache, "--json").stdout)
    assert "pins.toml: not TOML" in document["misses"][0]
