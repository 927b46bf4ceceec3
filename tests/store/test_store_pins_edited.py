"""Changing a file of pins: what the user wrote in it stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.errors import StoreError
from tunebook.records import Tactic
from tunebook.store import MAX_PINS_BYTES, read_pins, update_pins

TORCH, NATIVE = Tactic.parse("torch"), Tactic.parse("native[block=32]")

MINE = """\
# chosen on the demo machine

[pins]  # the one table
"linear@M≤16" = "native[block=32]"   # faster than the verdict says
'experts' = "torch"

# ask Li before this goes
zeta="default"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pins.toml"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_another_tactic_changes_that_alone(path: Path) -> None:
    update_pins(path, {"linear@M≤16": TORCH})
    assert path.read_text() == MINE.replace('"native[block=32]"', '"torch"')


def test_a_pin_that_is_new_comes_last_and_one_that_goes_takes_no_comment_of_others_along(path: Path) -> None:
    update_pins(path, {"attend": NATIVE})
    assert path.read_text().startswith(MINE)
    assert read_pins(path).tactics["attend"] == NATIVE
    update_pins(path, {"attend": None})
    assert path.read_text() == MINE
    update_pins(path, {"experts": None})
    assert path.read_text() == MINE.replace("'experts' = \"torch\"\n", "")


def test_a_target_is_found_however_it_is_spelt(path: Path) -> None:
    path.write_text('[pins]\n"linear@M≤016" = "torch"\n')
    update_pins(path, {"linear@M≤16": NATIVE})
    assert path.read_text() == '[pins]\n"linear@M≤016" = "native[block=32]"\n'
    update_pins(path, {"linear@M≤16": None})
    assert not path.exists()


def test_the_file_stays_without_pins_where_comments_are_in_it(path: Path) -> None:
    update_pins(path, dict.fromkeys(read_pins(path).tactics))
    assert (read_pins(path).tactics, read_pins(path).misses) == ({}, ())
    assert "# ask Li before this goes" in path.read_text()
    assert "# chosen on the demo machine" in path.read_text()


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("# only a comment\n", '# only a comment\n\n[pins]\nattend = "torch"\n'),
        ("pins = {linear = 'torch'}\n", "pins = {linear = 'torch',attend = \"torch\"}\n"),
        ("pins.linear = 'torch' # why\n", "pins.linear = 'torch' # why\npins.attend = \"torch\"\n"),
        ("[pins]\r\nlinear = 'torch'\r\n", "[pins]\r\nlinear = 'torch'\r\nattend = \"torch\"\n"),
    ],
)
def test_other_ways_to_write_it_are_kept(path: Path, text: str, then: str) -> None:
    path.write_bytes(text.encode())
    update_pins(path, {"attend": TORCH})
    assert path.read_bytes().decode() == then
    assert read_pins(path).misses == ()


def test_a_file_that_would_grow_too_large_is_left_alone(path: Path) -> None:
    text = MINE + "# filler\n" * ((MAX_PINS_BYTES - len(MINE.encode())) // 9)
    path.write_text(text)
    with pytest.raises(StoreError, match=str(MAX_PINS_BYTES)):
        update_pins(path, {"attend": NATIVE})
    assert path.read_text() == text


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:-]{0,8}", fullmatch=True).filter(
    lambda name: name not in ("zeta", "experts")
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tactics = st.builds(
    lambda runner, params: Tactic(runner=runner, params=tuple(params.items())),
    names,
    st.dictionaries(names, texts | st.integers(0, 99) | st.booleans(), max_size=2),
)


@settings(deadline=None, max_examples=60)
@given(wanted=st.dictionaries(names, tactics, min_size=1, max_size=4))
def test_whatever_is_pinned_reads_back_beside_what_was_there_and_goes_again(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, Tactic]
) -> None:
    path = tmp_path_factory.mktemp("pins") / "pins.toml"
    path.write_text(MINE)
    before = dict(read_pins(path).tactics)
    update_pins(path, wanted)
    assert (dict(read_pins(path).tactics), read_pins(path).misses) == ({**before, **wanted}, ())
    update_pins(path, dict.fromkeys(wanted))
    assert path.read_text() == MINE
