"""What FlashInfer's two stores have in common: the key of an entry, its winner in words, and entries grouped by problem."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunebook.interop._format import Entry, Trial
from tunebook.interop._reading import canonical, refuse

#: A key is ``str((op, runner class, shapes, extras))``; this is how it begins.
_HEAD = re.compile(r"\((?P<op>'[^'\\]*'|\"[^\"\\]*\"), (?P<runner>'[^'\\]*'|\"[^\"\\]*\"), (?P<rest>.*)\)", re.DOTALL)
_SHAPE = re.compile(r"\(([0-9, ]*)\)")
#: The longest key that is taken apart by Python's parser.
_LONGEST_KEY: Final = 20_000
#: Why a trial has no time where several runners have an entry: none of them failed.
ONE_OF_SEVERAL: Final = "one of several runners"
#: What a FlashInfer policy reads like: a flat list of names and values.
_LONGEST_POLICY: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of a store: its key as the store has it, and what was chosen."""

    key: str
    runner: str
    tactic: Any
    policy: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key taken apart. `rest` is the shapes and extras as they stand in the key."""

    op: str
    runner: str
    rest: str

    @classmethod
    def parse(cls, text: str) -> Key | None:
        """None for what does not read like FlashInfer's own keys; such a key is the op's name and no more."""
        found = _HEAD.fullmatch(text)
        if found is None:
            return None
        return cls(op=found["op"][1:-1], runner=found["runner"][1:-1], rest=found["rest"])

    @property
    def without_runner(self) -> str:
        """The problem: the same whichever runner won it."""
        return f"('{self.op}', {self.rest})"

    @property
    def problem(self) -> str:
        """``1024x4096 8192x4096, extras (…)``"""
        shapes, extras = _halves(self.rest)
        text = " ".join(_SHAPE.sub(_shape, shapes[1:-1]).replace(",", " ").split())
        return text if extras in ("", "()") else f"{text}, extras {extras}".lstrip(", ")


def _shape(found: re.Match[str]) -> str:
    return "x".join(found[1].replace(",", " ").split()) or "-"


def _halves(rest: str) -> tuple[str, str]:
    """The shapes and the extras: two tuples with a comma between them."""
    depth = 0
    for at, sign in enumerate(rest):
        if sign in "([":
            depth += 1
        elif sign in ")]":
            depth -= 1
            if depth == 0:
                return rest[: at + 1], rest[at + 1 :].removeprefix(", ")
    return rest, ""


def check_record(path: Path, place: str, key: str, runner: object, tactic: object, policy: object) -> Record:
    """The record of these values. Raises ``StoreError`` with the place where FlashInfer itself could not use them."""
    if not isinstance(runner, str) or not runner:
        refuse(path, "the runner is not a name", place)
    if not isinstance(policy, list | None) or len(policy or ()) > _LONGEST_POLICY:
        refuse(path, "the measuring policy is not a list", place)
    try:
        canonical([tactic, policy])
    except ValueError as error:
        refuse(path, f"the tactic cannot be read: {error}", place)
    return Record(key=key, runner=runner, tactic=tactic, policy=None if policy is None else tuple(policy))


def entries_of(records: Iterable[Record]) -> dict[str, Entry]:
    """An entry a problem. Where several runners have an entry for one, all are named: which one FlashInfer serves depends
    on the order in which the process offers its runners.
    """
    by_problem: dict[str, list[tuple[Key | None, Record]]] = {}
    for record in records:
        key = Key.parse(record.key)
        name = record.key if key is None else key.without_runner
        by_problem.setdefault(name, []).append((key, record))
    found = {}
    for name, members in by_problem.items():
        key = members[0][0]
        choices = sorted(choice_of(record) for _, record in members)
        found[name] = Entry(
            key=name,
            op=name if key is None else key.op,
            problem="" if key is None else key.problem,
            choice=" or ".join(choices),
            trials=tuple(Trial(tactic=choice, reason=ONE_OF_SEVERAL) for choice in choices) if len(choices) > 1 else (),
        )
    return found


def entries_of_products(products: Mapping[str, Any]) -> dict[str, Entry]:
    """What products keep beside the winners (``_records``), such as SGLang's of MegaMoE: an entry a record of a namespace."""
    found = {}
    for namespace, records in products.items():
        for name, value in records.items() if isinstance(records, Mapping) else (("", records),):
            key = f"{namespace}: {name}" if name else namespace
            found[key] = Entry(key=key, op=namespace, problem=name, choice=canonical(value))
    return found


def choice_of(record: Record) -> str:
    """``CutlassFp4GemmRunner[3]``; FlashInfer's tactics are numbers, or tuples of them, into the runner's own list."""
    tactic = canonical(record.tactic)
    return f"{record.runner}{tactic if tactic.startswith('[') else f'[{tactic}]'}"


def shadowed(entries: Mapping[str, Entry]) -> int:
    """Problems for which several runners have an entry."""
    return sum(bool(entry.trials) for entry in entries.values())


def key_fields(text: str) -> Any:
    """The structural form of a key that FlashInfer's v2 store keeps beside it, or None where it cannot be told.

    A tuple is ``{"__tuple__": […]}`` and a torch dtype ``{"__dtype__": "bfloat16"}``.
    """
    if len(text) > _LONGEST_KEY:
        return None
    try:
        return _encoded(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _encoded(node: ast.expr) -> Any:
    """Raises ValueError for anything but tuples, lists, plain values, negative numbers and ``torch.<dtype>``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return node.value
    if isinstance(node, ast.Tuple):
        return {"__tuple__": [_encoded(item) for item in node.elts]}
    if isinstance(node, ast.List):
        return [_encoded(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _encoded(node.operand)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        return {"__dtype__": node.attr}
    raise ValueError("no plain value")


def problem_of(key: str) -> str:
    """A key without its runner: what two entries share that stand in each other's way."""
    parsed = Key.parse(key)
    return key if parsed is None else parsed.without_runner
