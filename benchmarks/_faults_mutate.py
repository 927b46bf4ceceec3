"""Damage to files: bytes flipped, cut and spliced, and JSON changed with its structure in mind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

#: What is put between two bytes, or in the place of some.
TOKENS = (
    b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"{", b"}", b"[", b"]", b'"',
    b"\\", b"\n", b"\r\n", b"\n\n\n", b"null", b"true", b"{}", b"[]", b"\\u0000", b"\\ud800", b"[" * 3000,
    b'{"a":' * 2000, b"9" * 5000,
    b"9" * 400, b'"' + b"x" * 40000 + b'"', b"default", b"native[block=7]", b"|", b",", b"=", "≤".encode(), b"\x1b[2J",
)  # fmt: skip
#: Values that a field may get instead of its own.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.0, 1.5, -0.0, 1e-300, 1e300, 10**18, 10**30, 10**400, -(10**30), "", "x", "default",
    "torch", "native", "a" * 20000, "\x00\x1b[2J\n", "\ud800", [], {}, [[]], [{}], {"": {}}, ["default"], [0] * 3000,
    {"default": {}},
    "native[block=32]", "native[block=true]", "native[", "[" * 500, "linear|||M≤" + "9" * 400, "|||||||", "o|||", "decode 1",
)  # fmt: skip
#: What is put behind a tactic's name, or in the place of its parameters, or of one value of them.
PARAMS = (
    "[p=1]",
    "[block=7]",
    "[]",
    "[block=true]",
    "[block=32.0]",
    "[threads=-1,block=9999999]",
    "[isa=none]",
    "[x='1']",
)


def damaged(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`data` with one or a few changes; `others` are files that pieces may come from."""
    for _ in range(1 if rng.random() < 0.7 else rng.randint(2, 5)):
        of_bytes = rng.random() < 0.35
        data = rng.choice(_OF_BYTES)(data, others, rng) if of_bytes else _of_structure(data, rng)
    return data


def _flip(data: bytes, _: list[bytes], rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _place in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, _: list[bytes], rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(data: bytes, _: list[bytes], rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randint(1, 200) :]


def _put(data: bytes, _: list[bytes], rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.choice(TOKENS) + data[start + rng.choice((0, 0, 1, 8)) :]


def _splice(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _repeat(data: bytes, _: list[bytes], rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randint(1, 400)]
    return data[:start] + piece * rng.randint(2, 20) + data[start:]


_OF_BYTES: tuple[Callable[[bytes, list[bytes], random.Random], bytes], ...] = (
    _flip,
    _cut,
    _drop,
    _put,
    _splice,
    _repeat,
)


def _of_structure(data: bytes, rng: random.Random) -> bytes:
    """A change to one value of the JSON, of one line of JSON Lines, or to one line of any other text."""
    try:
        return _changed(data, rng)
    except (ValueError, RecursionError):
        pass
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    try:
        lines[place] = _changed(lines[place], rng)
    except (ValueError, RecursionError):
        lines[place] = _line(lines[place], rng)
    return b"\n".join(lines)


def _line(line: bytes, rng: random.Random) -> bytes:
    """A line ``"key" = "value"`` with another key or value, or twice."""
    left, equals, right = line.partition(b" = ")
    kind = rng.randrange(5)
    if not equals or kind == 0:
        return line + b"\n" + line
    if kind == 1:
        return left + equals + _text(rng.choice(VALUES))
    if kind == 2:
        return left + equals + right.rstrip(b'"') + rng.choice(PARAMS).encode() + b'"'
    if kind == 3:
        return (
            _text(rng.choice(("linear", "experts", "linear@M≤1", "linear@Q≤1", "@", "linear|", "", "x" * 5000)))
            + equals
            + right
        )
    return (
        rng.choice((b"[pins]", b"[[pins]]", b"a" + b".a" * 3000 + b" = 1", b"[other]", b"x = " + b"[" * 3000))
        + b"\n"
        + line
    )


def _changed(data: bytes, rng: random.Random) -> bytes:
    document = json.loads(data)
    places = list(_places(document))
    if not places:
        raise ValueError
    if rng.random() < 0.35:
        return _text(_everywhere(document, places, rng))
    holder, name = rng.choice(places)
    value, kind, twice = holder[name], rng.randrange(10), None
    if kind <= 2 and isinstance(value, str):
        holder[name] = _renamed(value, rng)
    elif kind <= 3:
        holder[name] = rng.choice(VALUES)
    elif kind == 4:
        holder[name] = _nested(value, rng.choice((1, 2, 500, 5000)))
    elif kind == 5 and isinstance(value, list) and value:
        holder[name] = value * rng.randint(2, 200)
    elif kind == 6:
        other, key = rng.choice(places)
        holder[name], other[key] = other[key], value
    elif kind == 7 and isinstance(holder, dict):
        holder[_renamed(str(holder[name] if rng.random() < 0.1 else name), rng)] = value
        if rng.random() < 0.5:
            del holder[name]
    elif kind == 8 and isinstance(holder, dict):
        twice = name
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        holder[name] = rng.choice(
            (float("nan"), float("inf"), -value, value * 1e9, value / 1e9, 0, str(value), [value])
        )
    else:
        del holder[name]
    text = _text(document)
    if twice is not None:
        spelt = json.dumps(twice, ensure_ascii=False).encode("utf-8", "surrogatepass") + b":"
        text = text.replace(spelt, spelt + _text(rng.choice(VALUES)) + b"," + spelt, 1)
    return text


def _everywhere(document: Any, places: list[tuple[Any, Any]], rng: random.Random) -> Any:
    """The document with one tactic or problem called otherwise wherever it stands, so that all of it agrees."""
    words = {word for holder, name in places for word in (holder[name], name) if isinstance(word, str)}
    named = sorted(word for word in words if "[" in word or "|" in word or word == "default")
    if not named:
        raise ValueError
    old = rng.choice(named)
    new = _renamed(old, rng) if rng.random() < 0.7 else rng.choice(named)

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {new if name == old else name: put(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [put(inner) for inner in value]
        return new if value == old else value

    return put(document)


def _places(value: Any) -> Any:
    """Every place in a document that holds something, as (its holder, its name there)."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            for name in holder if isinstance(holder, dict) else range(len(holder)):
                yield holder, name
                waiting.append(holder[name])


def _renamed(text: str, rng: random.Random) -> str:
    """Another tactic, problem key or word that looks much like it."""
    kind = rng.randrange(8)
    runner, bracket, params = text.partition("[")
    if kind == 0:
        return runner + rng.choice(PARAMS)
    if kind == 1 and bracket:
        return f"{runner}[{params.replace('=', '=1', 1)}"
    if kind == 2 and bracket:
        other = rng.choice(
            (("=32", "=32.0"), ("=1", "=true"), ("=0", "=false"), ("=0", "=-0"), ("=", "=' '"), ("=0", "=0.0"))
        )
        return f"{runner}[{params.replace(*other)}"
    if kind == 3:
        return text.replace("≤", rng.choice(("≥", "=", "≤9", "≤-", "@")), 1)
    if kind == 4 and "|" in text:
        return text + rng.choice((",Q≤3", "|captured", ",M≤1", "@odd", "@" + "y" * 300))
    if kind == 5:
        return text + rng.choice(("x", " ", "\n", "\x00", "é", "|", "%41", "%"))
    return (
        rng.choice(("default", "torch", "native", "onednn", "no_such_runner", "default[]", "native[block=32]", ""))
        if kind == 6
        else text[:-1]
    )


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _text(value: Any) -> bytes:
    """JSON; what is nested deeper than the encoder goes is written by hand."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except RecursionError:
        return _deep(value).encode("utf-8", "surrogatepass")


def _deep(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_deep(inner)}" for name, inner in value.items()) + "}"
    depth = 0
    while isinstance(value, list) and len(value) == 1:
        value, depth = value[0], depth + 1
    inner = "[" + ",".join(map(_deep, value)) + "]" if isinstance(value, list) else json.dumps(value)
    return "[" * depth + inner + "]" * depth
