"""`tunebook merge`: of two winners the better supported one is kept, with the reason; nothing is ever overwritten unasked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunebook.records import Offered, Plan
from tunebook.store import read_cache
from tunebook.store.bundles import encode_bundle

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


class Pair:
    """Two caches of one environment, and the command that merges them."""

    def __init__(self, made: Any, cli_inside: Cli) -> None:
        self.made, self._cli = made, cli_inside
        self.out = made.folder / "merged.json"
        self.one, self.other = made.folder / "one.json", made.folder / "other.json"
        made.folder.mkdir(parents=True, exist_ok=True)

    def verdict(self, size: int, speedup: float = 1.5, **changes: Any) -> Any:
        return self.made.verdict(self.made.key(size), speedup, **changes)

    def write(self, path: Path, *verdicts: Any, plans: tuple[Plan, ...] = (), **environment: str) -> Path:
        self.made.cache(verdicts, plans).rename(path)
        if environment:
            document = json.loads(path.read_bytes())
            document["environment"]["hard"] |= environment
            path.write_text(json.dumps(document))
        return path

    def merge(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        words = arguments or (self.one, self.other)
        return self._cli(self.made.folder, "merge", *words, "-o", self.out, code=code)

    def document(self, *arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.merge(*(arguments or (self.one, self.other)), "--json").stdout)
        return found

    def winners(self) -> dict[str, float]:
        return {key: verdict.speedup for key, verdict in read_cache(self.out, self.made.environment).verdicts.items()}


@pytest.fixture
def pair(made: Any, cli_inside: Cli) -> Pair:
    return Pair(made, cli_inside)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error, which must be all there is."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tunebook: error: ")
    assert done.stdout == ""
    return line


def test_the_better_supported_winner_is_kept_and_the_reason_is_told(pair: Pair) -> None:
    newer = {**pair.made.offered, "native": Offered(version="8", space="s")}
    unsure: dict[str, Any] = {"status": "unresolved", "space": 100}
    cases = {
        1: (pair.verdict(1, 1.1), None, None, ""),
        2: (None, pair.verdict(2, 1.2), None, ""),
        4: (pair.verdict(4), pair.verdict(4), None, ""),
        8: (pair.verdict(8, 1.1), pair.verdict(8, 1.9, status="likely"), "A", "proven, the other is likely"),
        16: (pair.verdict(16, 1.1, status="likely"), pair.verdict(16, 1.9), "B", "proven, the other is likely"),
        32: (pair.verdict(32, seen=9, **unsure), pair.verdict(32, seen=5, **unsure), "A", "9 tactics tried, the other 5"),
        64: (pair.verdict(64, rounds=4, **unsure), pair.verdict(64, rounds=9, **unsure), "B", "9 rounds, the other 4"),
        128: (pair.verdict(128, 1.1), pair.verdict(128, 1.9), "B", "as well supported; it counts as the later one"),
        256: (pair.verdict(256, 1.1), pair.verdict(256, 1.9, status="likely", offered=newer), "B",
              "what was offered differs: native; it counts as the later one"),
        512: (pair.verdict(512, 1.1, status="likely"), pair.verdict(512, 1.9, rounds=0, offered=newer, status="unresolved"), "A",
              "the other was not measured"),
    }  # fmt: skip
    pair.write(pair.one, *(case[0] for case in cases.values() if case[0]))
    pair.write(pair.other, *(case[1] for case in cases.values() if case[1]))
    before = pair.one.read_bytes(), pair.other.read_bytes()
    text = pair.merge().stdout
    pair.out.unlink()
    found = pair.document()
    assert (pair.one.read_bytes(), pair.other.read_bytes()) == before
    conflicts = {c["problem"]: (c["kept"], c["why"]) for c in found["conflicts"]}
    assert conflicts == {pair.made.key(size): (kept, why) for size, (_, _, kept, why) in cases.items() if kept}
    kept = {size: one if letter == "A" or other is None else other for size, (one, other, letter, _) in cases.items()}
    merged = read_cache(pair.out, pair.made.environment)
    assert dict(merged.verdicts) == {pair.made.key(size): verdict for size, verdict in kept.items()}
    assert (found["winners"], found["from_a"], found["from_b"], found["equal"]) == (10, 4, 5, 1)
    assert "10 winners: 4 from A, 5 from B, 1 equal in both; 0 plans" in text
    assert all(text.count(why) for _, why in conflicts.values())
    assert [side["problems"] for side in found["of"]] == [9, 9]


def plan(fingerprint: str, **fields: Any) -> Plan:
    return Plan(fingerprint=fingerprint, **{"model": "a-model", "tactics": {}, **fields})


def test_of_two_plans_the_one_that_fits_then_the_verified_then_the_later_one_is_kept(pair: Pair) -> None:
    key = pair.made.key(1)
    fits, misfit = {key: "native[tile=1]"}, {key: "native[tile=2]"}
    pair.write(
        pair.one,
        pair.verdict(1),
        plans=(plan("fit", tactics=fits), plan("proof", verified=True), plan("later"), plan("mine"), plan("same")),
    )
    pair.write(
        pair.other,
        pair.verdict(1),
        plans=(plan("fit", tactics=misfit, verified=True), plan("proof"), plan("later", run="b"), plan("same")),
    )
    found = pair.document()
    assert {c["fingerprint"]: (c["kept"], c["why"]) for c in found["plan_conflicts"]} == {
        "fit": ("A", "its tactics are those of the winners that were kept"),
        "proof": ("A", "it was compared with the default on the whole model"),
        "later": ("B", "it counts as the later one"),
    }
    plans = read_cache(pair.out, pair.made.environment).plans
    assert sorted(plans) == ["fit", "later", "mine", "proof", "same"]
    assert (plans["fit"].tactics, plans["proof"].verified, plans["later"].run) == (fits, True, "b")
    pair.out.unlink()
    assert "Plans in both" in pair.merge().stdout


def test_a_side_may_be_a_run_a_bundle_or_a_word(pair: Pair) -> None:
    pair.made.run([pair.verdict(1, 1.1)])
    latest = pair.made.run([pair.verdict(1, 1.2), pair.verdict(2, 1.2)])
    cache = pair.made.cache([pair.verdict(4, 1.3)])
    words = ("latest", "cache", "--cache", cache)
    assert pair.document(*words)["of"][0]["path"] == str(latest)
    assert pair.winners() == {pair.made.key(size): s for size, s in ((1, 1.2), (2, 1.2), (4, 1.3))}
    pair.out.unlink()
    bundle = pair.made.folder / "b.tunebook"
    bundle.write_bytes(encode_bundle(cache.read_bytes(), {}))
    pair.merge(latest, bundle)
    assert len(pair.winners()) == 3
    merged = pair.out.read_bytes()
    pair.out.unlink()
    pair.merge(latest, cache)
    assert pair.out.read_bytes() == merged  # the same content gives the same bytes


def test_other_environments_are_refused_by_field(pair: Pair) -> None:
    pair.write(pair.one, pair.verdict(1))
    pair.write(pair.other, pair.verdict(1), threads="8", isa="sse")
    line = complaint(pair.merge(code=1))
    assert "(A ≠ B): isa: - ≠ sse; threads: 2 ≠ 8" in line
    assert not pair.out.exists()


def test_what_is_there_is_never_overwritten_unasked(pair: Pair) -> None:
    pair.write(pair.one, pair.verdict(1))
    pair.write(pair.other, pair.verdict(2))
    pair.out.write_text("somebody's")
    assert "is there already; name another file, or say --force" in complaint(pair.merge(code=2))
    assert pair.out.read_text() == "somebody's"
    pair.merge(pair.one, pair.other, "--force")
    assert len(pair.winners()) == 2
    pair.out.unlink()
    pair.out.symlink_to(pair.made.folder / "nowhere")
    assert "is there already" in complaint(pair.merge(code=2))
    pair.merge(pair.one, pair.other, "--force")
    assert not pair.out.is_symlink()
    assert not (pair.made.folder / "nowhere").exists()
    pair.out.unlink()
    pair.out.mkdir()
    assert "is a directory; name a file" in complaint(pair.merge(pair.one, pair.other, "--force", code=2))


def test_errors_are_one_line(pair: Pair) -> None:
    pair.write(pair.one, pair.verdict(1))
    nameless = pair.made.folder / "nameless.json"
    nameless.write_text(msgspec.json.encode({"schema": 1, "verdicts": {}}).decode())
    broken = pair.made.folder / "broken.json"
    broken.write_text("{")
    for arguments, says, code in (
        ((pair.one, pair.made.folder / "absent.json"), "there is no such file", 1),
        ((broken, pair.one), "not JSON", 1),
        ((nameless, pair.one), "field environment", 1),
        (("cache", "cache"), "cache and cache are the same", 2),
        ((pair.one, pair.one, "--threads", "2"), "are paths", 2),
        (("latest", pair.one, "--cache", pair.made.folder / "x.json"), "there is no run", 1),
    ):
        assert says in complaint(pair.merge(*arguments, code=code))
        assert not pair.out.exists()
    pair.out = pair.made.folder / "no" / "such" / "folder.json"
    assert "was not written: No such file or directory; name another place with -o" in complaint(
        pair.merge(pair.one, pair.one, code=1)
    )


def test_entries_that_cannot_be_read_are_counted_and_text_of_files_is_harmless(pair: Pair) -> None:
    pair.write(pair.one, pair.verdict(1), pair.verdict(2), plans=(plan("p", model="\x1b[31m\n"),))
    pair.write(pair.other, pair.verdict(1, 1.9), plans=(plan("p", model="\x1b[32m"),))
    pair.one.write_bytes(pair.one.read_bytes().replace(b'"proven"', b'"certain"', 1))
    text = pair.merge().stdout
    assert "(1 problems, 1 entries of it cannot be read)" in text
    assert "\x1b" not in text
    assert pair.winners() == {pair.made.key(1): 1.9, pair.made.key(2): 1.5}
