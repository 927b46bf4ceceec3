"""How a registry of environment variables works: kinds, set and override, aliases, declarations."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.envs import (
    Alias,
    Computed,
    EnvBool,
    EnvFloat,
    EnvInt,
    EnvPath,
    EnvPaths,
    Envs,
    EnvStr,
    EnvTuple,
    Registry,
    Variable,
    envs,
)
from tunebook.errors import EnvironmentVariableError, TunebookError

FOREIGN = "SGLANG_FLASHINFER_AUTOTUNE_CACHE"
TRUE = ("1", "true", "yes", "y", "on")
FALSE = ("0", "false", "no", "n", "off")

# How long an example takes on a busy machine says nothing about the code.
untimed = settings(deadline=None)


class Sample(Registry):
    """One variable of every kind."""

    FLAG = EnvBool(
        False,
        help="a flag",
        aliases=(
            Alias("OLD_FLAG", deprecated=True),
            Alias("THEIR_FLAG", owner="Theirs"),
            Alias("OTHER_FLAG", owner="Others"),
        ),
    )
    COUNT = EnvInt(None, minimum=1, help="a count")
    SIZE = EnvInt(3, help="a size")
    RATE = EnvFloat(0.5, above=0, help="a rate")
    LEVEL = EnvStr("low", choices=("low", "High"), help="a level")
    WORD = EnvStr(None, help="a word")
    PLACE = EnvPath[Path](Computed(lambda: Path("somewhere"), "some place"), help="a place")
    NAMES = EnvTuple(("a", "b"), help="names")
    PLACES = EnvPaths((), help="some places")
    GONE = EnvInt(1, help="an old one", deprecated="set SIZE instead")


def sample(**environ: str) -> Sample:
    return Sample(dict(environ))


@st.composite
def spelt(draw: st.DrawFn, words: tuple[str, ...]) -> str:
    """One of the words, each letter in either case, with blanks around it."""
    word = draw(st.sampled_from(words))
    letters = [draw(st.sampled_from((letter.lower(), letter.upper()))) for letter in word]
    blanks = st.text(" \t\n\r", max_size=3)
    return draw(blanks) + "".join(letters) + draw(blanks)


# ------------------------------------------------------------------ kinds


@untimed
@given(text=spelt(TRUE))
def test_true_words(text: str) -> None:
    assert sample(FLAG=text).FLAG.get() is True


@untimed
@given(text=spelt(FALSE))
def test_false_words(text: str) -> None:
    registry = Envs({"TUNEBOOK_AUTOTUNE": text})
    assert registry.TUNEBOOK_AUTOTUNE.get() is False


@untimed
@given(text=st.text(max_size=12))
def test_any_other_text_is_an_error_that_names_variable_value_and_forms(text: str) -> None:
    stripped = text.strip()
    variable = sample(FLAG=text).FLAG
    if not stripped:
        assert variable.get() is False
    elif stripped.lower() not in TRUE + FALSE:
        with pytest.raises(EnvironmentVariableError) as caught:
            variable.get()
        message = str(caught.value)
        assert message.startswith(f"FLAG={stripped!r} ")
        assert all(word in message for word in TRUE + FALSE)
        assert "default (false)" in message


@pytest.mark.parametrize("blank", ["", " ", "\t \n"])
def test_blank_counts_as_unset_for_every_kind(blank: str) -> None:
    registry = Sample({field.name: blank for field in Sample.fields()})
    for variable in registry.variables():
        assert not variable.is_set()
        assert variable.get() == variable.field.default()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("COUNT", " 12 ", 12),
        ("COUNT", "None", None),
        ("SIZE", "-7", -7),
        ("SIZE", "+7", 7),
        ("RATE", "2", 2.0),
        ("RATE", "1e-3", 0.001),
        ("RATE", ".5", 0.5),
        ("LEVEL", "HIGH", "High"),
        ("LEVEL", " low", "low"),
        ("WORD", "Any Thing", "Any Thing"),
        ("WORD", "none", None),
        ("PLACE", "/x/y", Path("/x/y")),
        ("NAMES", "a, b ,,c", ("a", "b", "c")),
        ("NAMES", "None", ()),
        ("PLACES", os.pathsep.join(("/a b", "", " c ")), (Path("/a b"), Path("c"))),
        ("PLACES", "none", ()),
    ],
)
def test_accepted(name: str, text: str, value: object) -> None:
    registry = sample(**{name: text})
    got = getattr(registry, name).get()
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("COUNT", "0", "a whole number of at least 1, or none"),
        ("COUNT", "1.5", "a whole number"),
        ("COUNT", "1_000", "a whole number"),
        ("COUNT", "٣", "a whole number"),
        ("COUNT", "9" * 5000, "a whole number"),
        ("SIZE", "none", "a whole number"),
        ("RATE", "0", "a number greater than 0"),
        ("RATE", "-1", "a number greater than 0"),
        ("RATE", "nan", "a number"),
        ("RATE", "inf", "a number"),
        ("RATE", "1e999", "a number"),
        ("RATE", "1,5", "a number"),
        ("LEVEL", "middle", "one of low, High in any case"),
        ("PLACE", "~no-such-user-anywhere/x", "default (some place)"),
        ("WORD", "a\0b", "any text"),
    ],
)
def test_refused(name: str, text: str, said: str) -> None:
    registry = sample(**{name: text})
    with pytest.raises(EnvironmentVariableError) as caught:
        getattr(registry, name).get()
    assert f"{name}={text!r}" in str(caught.value)
    assert said in str(caught.value)
    assert isinstance(caught.value, TunebookError)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", "~/books")
    assert envs.TUNEBOOK_CACHE_DIR.get() == tmp_path / "books"


# ------------------------------------------------------------------ set, clear, override

values = st.one_of(
    st.tuples(st.just("FLAG"), st.booleans()),
    st.tuples(st.just("COUNT"), st.none() | st.integers(1, 10**15)),
    st.tuples(st.just("SIZE"), st.integers(-(10**15), 10**15)),
    st.tuples(st.just("RATE"), st.floats(0, exclude_min=True, allow_infinity=False)),
    st.tuples(st.just("LEVEL"), st.sampled_from(("low", "High"))),
    st.tuples(st.just("WORD"), st.none() | st.just("some words")),
    st.tuples(st.just("PLACE"), st.sampled_from((Path("/a b"), Path("c")))),
    st.tuples(st.just("NAMES"), st.lists(st.text("xyz-", min_size=1), max_size=3).map(tuple)),
    st.tuples(st.just("PLACES"), st.lists(st.text("xyz/-", min_size=1).map(Path), max_size=3).map(tuple)),
)


@untimed
@given(pair=values)
def test_what_is_set_is_read_back(pair: tuple[str, object]) -> None:
    name, value = pair
    registry = sample()
    variable: Variable[object] = getattr(registry, name)
    variable.set(value)
    assert variable.get() == value
    assert variable.source() == name
    assert list(registry.environ) == [name]  # all state is in the environment: a child process sees the same
    assert getattr(Sample(dict(registry.environ)), name).get() == value
    variable.clear()
    variable.clear()
    assert not variable.is_set()
    assert variable.get() == variable.field.default()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLAG", None),
        ("FLAG", "perhaps"),
        ("COUNT", 0),
        ("RATE", float("nan")),
        ("RATE", 0.0),
        ("LEVEL", "middle"),
        ("LEVEL", ""),
        ("NAMES", ("a,b",)),
        ("NAMES", (" a",)),
        ("NAMES", ("",)),
        ("NAMES", ("none",)),
        ("NAMES", "ab"),
        ("PLACES", (Path(f"a{os.pathsep}b"),)),
        ("PLACES", (Path(" a"),)),
        ("PLACES", (Path("~nobody-of-that-name"),)),
        ("PLACES", Path("/a")),
    ],
)
def test_set_refuses_what_could_not_be_read_back(name: str, value: object) -> None:
    registry = sample(**{name: "kept"})
    with pytest.raises(EnvironmentVariableError, match=name):
        getattr(registry, name).set(value)
    assert registry.environ == {name: "kept"}
    with pytest.raises(EnvironmentVariableError), getattr(registry, name).override(value):
        pytest.fail("the block must not be entered")
    assert registry.environ == {name: "kept"}


@untimed
@given(before=st.none() | st.sampled_from(["", " 1", "no", "nonsense"]), inner=st.lists(values, max_size=6))
def test_override_nests_and_restores_text_and_absence(before: str | None, inner: list[tuple[str, object]]) -> None:
    registry = sample() if before is None else sample(FLAG=before, COUNT=before)
    start = dict(registry.environ)

    def enter(rest: list[tuple[str, object]]) -> None:
        if not rest:
            raise KeyError("the innermost block fails")
        name, value = rest[0]
        outside = dict(registry.environ)
        try:
            with getattr(registry, name).override(value):
                assert getattr(registry, name).get() == value
                enter(rest[1:])
        finally:
            assert registry.environ == outside

    with pytest.raises(KeyError):
        enter(inner)
    assert registry.environ == start


def test_set_or_clear_inside_an_override_does_not_outlive_it() -> None:
    registry = sample(SIZE="5")
    with registry.SIZE.override(6):
        registry.SIZE.set(7)
        assert registry.SIZE.get() == 7
    assert registry.environ == {"SIZE": "5"}
    with registry.SIZE.override(6):
        registry.SIZE.clear()
    assert registry.environ == {"SIZE": "5"}


def test_a_variable_is_not_its_value() -> None:
    registry, name = sample(), "FLAG"
    with pytest.raises(TypeError, match=r"FLAG.get\(\)"):
        bool(registry.FLAG)
    with pytest.raises(AttributeError, match=r"\.set\(True\)"):
        setattr(registry, name, True)
    assert Sample.FLAG.name == "FLAG"
    assert repr(registry.FLAG) == "<FLAG from default>"


# ------------------------------------------------------------------ aliases and deprecation


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@untimed
@given(own=st.none() | spelt(TRUE + FALSE), alias=st.none() | spelt(TRUE + FALSE))
def test_the_own_name_goes_before_the_alias(own: str | None, alias: str | None) -> None:
    texts = {"TUNEBOOK_AUTOTUNE_CACHE": own, FOREIGN: alias}
    variable = Envs({name: text for name, text in texts.items() if text is not None}).TUNEBOOK_AUTOTUNE_CACHE
    deciding = own if own is not None else alias
    assert variable.get() is (deciding is None or deciding.strip().lower() in TRUE)
    assert variable.is_set() is (deciding is not None)
    if own is not None:
        assert variable.source() == "TUNEBOOK_AUTOTUNE_CACHE"
    else:
        assert variable.source() == ("default" if alias is None else f"alias {FOREIGN}")


def test_aliases_are_asked_in_order_and_a_bad_foreign_one_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    assert sample(THEIR_FLAG="0", OTHER_FLAG="1").FLAG.get() is False
    registry = sample(THEIR_FLAG="?", OTHER_FLAG="1")
    assert registry.FLAG.get() is True
    assert registry.FLAG.source() == "alias OTHER_FLAG"
    (message,) = messages(caplog, logging.WARNING)
    assert "Theirs" in message


def test_a_bad_value_in_an_alias_of_our_own_is_an_error_in_its_name() -> None:
    variable = sample(OLD_FLAG="?").FLAG
    with pytest.raises(EnvironmentVariableError, match=r"OLD_FLAG='\?'"):
        variable.get()
    assert variable.source() == "alias OLD_FLAG"


def test_a_deprecated_name_warns_once_and_names_its_replacement(caplog: pytest.LogCaptureFixture) -> None:
    registry = sample(OLD_FLAG="1", GONE="4")
    for _ in range(2):
        assert registry.FLAG.get() is True
        assert registry.GONE.get() == 4
    assert messages(caplog, logging.WARNING) == [
        "OLD_FLAG is deprecated: set FLAG instead.",
        "GONE is deprecated: set SIZE instead",
    ]
    caplog.clear()
    assert sample().GONE.get() == 1
    assert caplog.records == []


# ------------------------------------------------------------------ declarations


def test_a_default_that_the_field_would_refuse_cannot_be_declared() -> None:
    for field in (
        EnvInt(0, minimum=1, help=""),
        EnvStr("c", choices=("a", "b"), help=""),
        EnvFloat(-1.0, above=0, help=""),
    ):
        with pytest.raises(TypeError, match="the default"):
            type("Bad", (Registry,), {"BAD": field})


def test_a_name_cannot_be_declared_twice() -> None:
    with pytest.raises(TypeError, match="declared twice"):
        type("Bad", (Registry,), {"A": EnvBool(True, help=""), "B": EnvBool(True, help="", aliases=[Alias("A")])})
