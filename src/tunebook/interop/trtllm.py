"""TensorRT-LLM's autotuner cache, the file of ``TLLM_AUTOTUNER_CACHE_PATH``.

``{"metadata": {…}, "rank_0": {key: {"runner_id", "tactic", "min_time"}}, …}``; a newer version has a part for what the ranks
share beside theirs, an older one has the single part ``cache_data``. A key is ``str((op, runner class, runner id, shapes))``;
the time is milliseconds. After ``tensorrt_llm/_torch/autotuner.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss, Trial
from tunebook.interop._pieces import dump, member, own, same, seconds, words
from tunebook.interop._reading import MAX_ENTRIES, canonical, head_members, parse_json, read_bytes, refuse, replace
from tunebook.store import Miss
from tunebook.store._text import one_line
from tunebook.store.misses import Misses

_METADATA: Final = "metadata"
#: What two files must have in common to become one.
_SAME: Final = ("lib_version", "device_name", "device_capability")
#: The longest key that is taken apart; real ones have some hundred characters.
_LONGEST: Final = 16384
_QUOTED = r"'[^'\\]*'|\"[^\"\\]*\""
_KEY = re.compile(rf"\((?P<op>{_QUOTED}), (?P<runner>{_QUOTED}), (?P<id>.*), (?P<shapes>\(\(.*\)|\(\))\)", re.DOTALL)


class TensorRtLlm:
    """The document is kept whole."""

    name: Final = "trtllm"
    title: Final = "TensorRT-LLM's autotuner cache"
    fidelity: Fidelity = "bytes"
    lost: tuple[Loss, ...] = (Loss("white space and escapes of a file that TensorRT-LLM did not write itself"),)

    def detects(self, path: Path, head: bytes) -> bool:
        """By its metadata."""
        metadata = (head_members(head) or {}).get(_METADATA)
        return isinstance(metadata, dict) and "lib_version" in metadata and "device_name" in metadata

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError`` for what is no entry; a key that cannot be taken apart is a miss."""
        value = parse_json(path, read_bytes(path))
        if not isinstance(value, dict):
            refuse(path, "it is no object with metadata")
        return _book(path, value)

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write it again."""
        replace(path, dump(own(book, self.name), indent=2))

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        """Raises ``UsageError`` unless both are of one version and device: TensorRT-LLM does not check.

        Of a problem that the first has, the second adds what the same runners have under other ids; another runner's entry
        might be found before the first's.
        """
        same(first, second, _SAME)
        mine, theirs = own(first, self.name), own(second, self.name)
        runners: dict[str, set[str]] = {}
        for part, key, _ in _records(first.path, mine):
            if parsed := _Key.parse(part, key):
                runners.setdefault(parsed.problem, set()).add(parsed.runner)
        content = {part: value if part == _METADATA else dict(value) for part, value in mine.items()}
        for part, key, record in _records(second.path, theirs):
            parsed = _Key.parse(part, key)
            if parsed is None or parsed.runner in runners.get(parsed.problem, {parsed.runner}):
                content.setdefault(part, {}).setdefault(key, record)
        return _book(first.path, content)


@dataclass(frozen=True, slots=True)
class _Key:
    """A key taken apart. `problem` leaves out the runner: which one is chosen is not part of the question."""

    problem: str
    op: str
    runner: str
    id: str
    shapes: str

    @classmethod
    def parse(cls, part: str, key: str) -> _Key | None:
        found = _KEY.fullmatch(key) if len(key) <= _LONGEST and key.endswith("))") else None
        if found is None:
            return None
        op, runner = found["op"][1:-1], found["runner"][1:-1]
        return cls(f"{part}|{op}|{found['shapes']}", op, runner, found["id"], found["shapes"])

    def choice(self, tactic: str) -> str:
        """Runner and tactic in words; the id unless it is the older versions' hash, another one in each process."""
        quoted = len(self.id) > 1 and self.id[0] == self.id[-1] and self.id[0] in "'\""
        told = {} if self.id.lstrip("-").isdigit() else {"id": self.id[1:-1] if quoted else self.id}
        return canonical({"runner": self.runner, "tactic": tactic, **told})


def _records(path: Path, document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each part's entries."""
    for part in document:
        if part != _METADATA:
            entries = member(path, document, part, dict, "")
            for key in entries:
                yield part, key, member(path, entries, key, dict, part)


def _book(path: Path, value: dict[str, Any]) -> ForeignBook:
    metadata = member(path, value, _METADATA, dict, "")
    misses = Misses(one_line(path))
    problems: dict[str, tuple[_Key, list[Trial]]] = {}
    for number, (part, key, record) in enumerate(_records(path, value)):
        if number >= MAX_ENTRIES:
            refuse(path, f"more than {MAX_ENTRIES} entries are not read", part)
        place = f"{part} {key}"
        member(path, record, "runner_id", int, place)
        taken = seconds(path, record.get("min_time"), 1e-3, place, "min_time")
        if "tactic" not in record:
            refuse(path, "tactic is missing", place)
        tactic = words(path, record["tactic"], place)
        parsed = _Key.parse(part, key)
        if parsed is None:
            said = "its key is not (op, runner, id, shapes), and TensorRT-LLM would pass it over"
            misses.add(Miss(kind="entry", where=f"{one_line(path)}, {one_line(place)}", detail=said))
            continue
        _, trials = problems.setdefault(parsed.problem, (parsed, []))
        trials.append(Trial(tactic=parsed.choice(tactic), seconds=taken))
    return ForeignBook(
        path=path,
        format=TensorRtLlm.name,
        facts={name: words(path, metadata[name], f"{_METADATA} {name}") for name in metadata},
        entries={problem: _entry(key, trials) for problem, (key, trials) in problems.items()},
        misses=misses.known(),
        content=value,
    )


def _entry(key: _Key, trials: list[Trial]) -> Entry:
    """One problem. It has several winners where runners differ in what the key calls id: each serves its own calls."""
    trials = sorted(trials, key=lambda trial: trial.tactic)
    return Entry(
        key=key.problem,
        op=key.op,
        problem=key.shapes,
        choice="; ".join(trial.tactic for trial in trials),
        seconds=trials[0].seconds if len(trials) == 1 else None,
        trials=tuple(trials) if len(trials) > 1 else (),
    )


FORMAT: Format = TensorRtLlm()
