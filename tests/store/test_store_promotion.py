"""Promotion and rollback in the store: exactly what was replaced comes back, and what others publish is not lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.errors import StoreError
from tunebook.records import Environment, Plan, Verdict
from tunebook.store import Location, better_supported, publish, read_cache
from tunebook.store.promotion import Revision, promote, restored, roll_back
from tunebook.store.replaced import MAX_PROMOTIONS, read_replaced, replaced_path

Make = Callable[..., Verdict]
Done = Callable[[Any], str]
_number = itertools.count()


def keyed(*verdicts: Verdict) -> dict[str, Verdict]:
    return {verdict.problem: verdict for verdict in verdicts}


def changed(verdict: Verdict, **fields: Any) -> Verdict:
    return msgspec.structs.replace(verdict, **fields)


@pytest.fixture
def location(tmp_path: Path, environment: Environment) -> Location:
    return Location.of(environment, tmp_path / "tuned.json")


class Book:
    """A cache that is published to, promoted into and rolled back."""

    def __init__(self, location: Location, environment: Environment) -> None:
        self.location, self.environment = location, environment

    @property
    def verdicts(self) -> dict[str, Verdict]:
        return dict(read_cache(self.location.cache, self.environment).verdicts)

    @property
    def plans(self) -> dict[str, Plan]:
        return dict(read_cache(self.location.cache, self.environment).plans)

    def publish(self, *verdicts: Verdict, plans: Mapping[str, Plan] | None = None) -> None:
        published = publish(self.location, self.environment, keyed(*verdicts), plans or {})
        assert published.problem is None

    def promote(self, *verdicts: Verdict, plans: Mapping[str, Plan] | None = None, **options: Any) -> Revision:
        options.setdefault("seen", self.verdicts)
        options.setdefault("seen_plans", self.plans)
        options.setdefault("promoted", f"2026-01-01T00:00:00.{next(_number):06d}")
        return promote(self.location, self.environment, keyed(*verdicts), plans or {}, run="a.jsonl", **options)

    def roll_back(self) -> Revision:
        return roll_back(self.location, self.environment, read_replaced(self.location.cache)[-1])


@pytest.fixture
def book(location: Location, environment: Environment) -> Book:
    return Book(location, environment)


def test_a_promotion_replaces_whatever_is_there_and_a_rollback_restores_it_byte_for_byte(
    book: Book, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    proven, other = make_verdict(1), make_verdict(2)
    book.publish(proven, other, plans={"f00d": make_plan("f00d"), "beef": make_plan("beef")})
    before = book.location.cache.read_bytes()
    lesser = changed(proven, status="unresolved", speedup=1.4, low=1.2, note="promoted")
    assert better_supported(proven, lesser), "a publish would leave it alone"
    new, plan = make_verdict(4), make_plan("f00d", left_out=3)
    revision = book.promote(lesser, new, plans={"f00d": plan}, taken_out=["beef"])
    assert revision == Revision(path=book.location.cache, written=True, left=1)
    assert book.verdicts == keyed(lesser, other, new)
    assert book.plans == {"f00d": plan}
    assert book.roll_back() == Revision(path=book.location.cache, written=True, left=0)
    assert book.location.cache.read_bytes() == before
    assert not replaced_path(book.location.cache).exists()


def test_a_cache_that_was_not_there(book: Book, make_verdict: Make) -> None:
    book.promote(make_verdict(1))
    assert book.verdicts == keyed(make_verdict(1))
    book.roll_back()
    assert book.verdicts == {}


def test_promotions_are_taken_back_in_turn_and_the_oldest_are_forgotten(book: Book, make_verdict: Make) -> None:
    speedups = [1.0 + n / 10 for n in range(MAX_PROMOTIONS + 2)]
    book.publish(make_verdict(1, speedup=9.0))
    for n, speedup in enumerate(speedups):
        revision = book.promote(make_verdict(1, speedup=speedup))
        assert revision.left == min(n + 1, MAX_PROMOTIONS)
        told = "cannot be rolled back any more" in " ".join(revision.notes)
        assert told == (n >= MAX_PROMOTIONS)
    for speedup in reversed(speedups[1:-1]):
        book.roll_back()
        assert book.verdicts == keyed(make_verdict(1, speedup=speedup))
    assert read_replaced(book.location.cache) == ()


def test_what_was_published_since_stays(book: Book, make_verdict: Make, make_plan: Callable[..., Plan]) -> None:
    book.publish(make_verdict(1), make_verdict(2), plans={"f00d": make_plan("f00d")})
    promoted = [make_verdict(size, winner="torch") for size in (1, 2, 4)]
    book.promote(*promoted, plans={"f00d": make_plan("f00d", left_out=1)})
    later, new = make_verdict(2, speedup=4.0), make_verdict(8)
    plan = make_plan("f00d", left_out=2)
    book.publish(later, new, plans={"f00d": plan})
    back = restored(read_replaced(book.location.cache)[-1], book.verdicts, book.plans)
    assert back.kept == (later.problem, "the plan f00d")
    book.roll_back()
    assert book.verdicts == keyed(make_verdict(1), later, new)
    assert book.plans == {"f00d": plan}


def test_a_result_that_gave_way_to_a_promoted_one_comes_back(book: Book, make_verdict: Make) -> None:
    likely = changed(make_verdict(1), status="likely")
    book.publish(likely, make_verdict(2))
    book.promote(changed(make_verdict(1), speedup=2.0, high=3.0))
    later = changed(likely, speedup=1.45)
    book.publish(later)
    assert book.verdicts[likely.problem].status == "proven"
    book.publish(later)  # saying it twice makes no difference
    book.roll_back()
    assert book.verdicts == keyed(later, make_verdict(2))


def test_a_lesser_result_published_since_gives_way_to_the_better_supported_one_that_comes_back(
    book: Book, make_verdict: Make
) -> None:
    proven = make_verdict(1)
    book.publish(proven)
    book.promote(changed(proven, status="unresolved", speedup=1.4))
    book.publish(changed(proven, status="likely", speedup=1.6))
    assert book.verdicts[proven.problem].status == "likely"
    book.roll_back()
    assert book.verdicts == keyed(proven)


def test_a_result_that_gives_way_to_an_earlier_promotion_comes_back_with_that_ones_rollback(
    book: Book, make_verdict: Make
) -> None:
    def likely(speedup: float) -> Verdict:
        return changed(make_verdict(1), status="likely", speedup=speedup)

    book.publish(likely(1.41))
    book.promote(make_verdict(1))
    book.promote(likely(1.42))
    book.publish(likely(1.43))
    assert book.verdicts == keyed(likely(1.43))
    book.roll_back()
    assert book.verdicts == keyed(make_verdict(1)), "it is the better supported one"
    book.roll_back()
    assert book.verdicts == keyed(likely(1.43))


def test_a_promotion_that_was_cut_off_before_it_reached_the_cache_takes_nothing_back(
    book: Book, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    """A process that is killed between the two files: what would be replaced is kept, and the cache is as it was."""
    book.publish(make_verdict(1), plans={"f00d": make_plan("f00d")})
    before = book.location.cache.read_bytes()
    book.promote(make_verdict(1, speedup=2.0), make_verdict(2), plans={"f00d": make_plan("f00d", left_out=1)})
    book.location.cache.write_bytes(before)
    book.roll_back()
    assert book.location.cache.read_bytes() == before
    assert read_replaced(book.location.cache) == ()


EVENTS = st.lists(
    st.tuples(st.sampled_from(["publish", "promote", "promote", "roll back"]), st.sampled_from(["likely", "proven"])),
    max_size=9,
)


@settings(max_examples=40, deadline=None)
@given(EVENTS)
def test_after_rollbacks_the_cache_is_what_it_would_be_without_the_promotions(
    environment: Environment, make_verdict: Make, events: list[tuple[str, str]]
) -> None:
    """Results about the same tactics, published and promoted in any order; promotions are taken back the newest first."""
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Location.of(environment, Path(folder) / "tuned.json"), environment)
        history: list[tuple[str, Verdict]] = []
        for number, (what, status) in enumerate(events):
            verdict = changed(make_verdict(1), status=status, rounds=number + 1)
            standing = [place for place, (kind, _) in enumerate(history) if kind == "promote"]
            if what == "roll back":
                if not standing:
                    continue
                book.roll_back()
                del history[standing[-1]]
            elif what == "promote":
                if len(standing) == MAX_PROMOTIONS:
                    continue
                book.promote(verdict)
                history.append((what, verdict))
            else:
                book.publish(verdict)
                history.append((what, verdict))
            expected: Verdict | None = None
            for kind, one in history:
                if kind == "promote" or expected is None or not better_supported(expected, one):
                    expected = one
            assert book.verdicts == ({} if expected is None else keyed(expected)), history


def test_while_two_processes_publish_nothing_of_theirs_is_lost(
    book: Book, make_verdict: Make, child: Any, done: Done
) -> None:
    contested = changed(make_verdict(1), status="unresolved")
    book.publish(contested)
    code = "for n in range(12):\n    assert put(int(sys.argv[4]) * 100 + n).problem is None\nput(1)"
    children = [child(code, book.location.cache, number) for number in (1, 2)]
    rounds = 0
    while rounds < 4 or any(process.poll() is None for process in children):
        with suppress(StoreError):  # it was published to between the look and the lock: said, and nothing done
            book.promote(changed(make_verdict(1), speedup=7.0, high=8.0), make_verdict(3))
            book.roll_back()
            rounds += 1
    for process in children:
        done(process)
    verdicts = book.verdicts
    published = [make_verdict(number * 100 + n) for number in (1, 2) for n in range(12)]
    assert verdicts == keyed(*published, make_verdict(1))
    assert not replaced_path(book.location.cache).exists()


def test_what_lies_in_shards_is_replaced_as_well_and_does_not_come_back(
    book: Book, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory that hosts share, a shard outlives its merge: a better supported verdict in it must not undo a promotion."""
    monkeypatch.setattr("tunebook.store._places.LOCAL", frozenset())
    proven = make_verdict(1)
    book.publish(proven)
    book.publish(make_verdict(2))
    assert list(Path(f"{book.location.cache}.d").iterdir())
    lesser = changed(proven, status="unresolved")
    book.promote(lesser)
    assert book.verdicts == keyed(lesser, make_verdict(2))
    book.publish(make_verdict(4))
    assert book.verdicts == keyed(lesser, make_verdict(2), make_verdict(4))
    book.roll_back()
    assert book.verdicts == keyed(proven, make_verdict(2), make_verdict(4))


@pytest.mark.parametrize("by", ["rollback", "another promotion"])
def test_a_result_that_waits_in_a_shard_is_not_lost_when_it_is_merged(
    by: str, book: Book, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be merged into the cache while that was locked, and gives way to what was promoted when it is."""
    likely = changed(make_verdict(1), status="likely")
    book.publish(likely)
    book.promote(changed(make_verdict(1), speedup=2.0, high=3.0))
    later = changed(likely, speedup=1.45)
    with FileLock(f"{book.location.cache}.lock"):
        published = publish(book.location, book.environment, keyed(later), {}, patience=0.0)
    assert published.shard is not None
    if by == "another promotion":
        book.promote(make_verdict(2))
        book.roll_back()
    book.roll_back()
    assert book.verdicts == keyed(later)


def test_an_interruption_after_the_cache_was_replaced_leaves_the_way_back(
    book: Book, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.publish(make_verdict(1))
    before = book.location.cache.read_bytes()
    real = os.replace

    def interrupted(source: Any, target: Any) -> None:
        real(source, target)
        if Path(target) == book.location.cache:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            book.promote(make_verdict(1, speedup=2.0))
    assert book.verdicts == keyed(make_verdict(1, speedup=2.0))
    book.roll_back()
    assert book.location.cache.read_bytes() == before


# What is refused, and what fails.


def test_where_the_cache_changed_since_it_was_looked_at_nothing_is_done(
    book: Book, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    book.publish(make_verdict(1), plans={"f00d": make_plan("f00d")})
    seen, planned, before = book.verdicts, book.plans, book.location.cache.read_bytes()
    with pytest.raises(StoreError, match=r"another process has changed it .*the plan f00d.* look again"):
        book.promote(make_verdict(2), plans={"f00d": make_plan("f00d", left_out=1)}, seen_plans={})
    with pytest.raises(StoreError, match="another process has changed it"):
        book.promote(make_verdict(1, speedup=2.0), seen={})
    assert book.location.cache.read_bytes() == before
    assert not replaced_path(book.location.cache).exists()
    assert book.promote(make_verdict(1, speedup=2.0), seen=seen, seen_plans=planned).written
    shown = read_replaced(book.location.cache)[-1]
    book.promote(make_verdict(1, speedup=3.0))
    with pytest.raises(StoreError, match=r"promoted or rolled back meanwhile.* look again"):
        roll_back(book.location, book.environment, shown)
    assert book.verdicts == keyed(make_verdict(1, speedup=3.0))


def test_a_disk_that_fails_leaves_everything_as_it_was(
    book: Book, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.publish(make_verdict(1))
    before = book.location.cache.read_bytes()
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target) == book.location.cache:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(StoreError, match=r"was not changed: No space left .*free some space"):
            book.promote(make_verdict(1, speedup=2.0))
    assert (book.location.cache.read_bytes(), read_replaced(book.location.cache)) == (before, ())
    book.promote(make_verdict(1, speedup=2.0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(StoreError, match="was not changed"):
            book.roll_back()
    book.roll_back()
    assert book.location.cache.read_bytes() == before


def test_without_locks_nothing_is_promoted(book: Book, make_verdict: Make, child: Any, done: Done) -> None:
    code = (
        "from tunebook.store.promotion import promote\nfrom tunebook.errors import StoreError\n"
        "one = {template.problem: template}\n"
        "try:\n    promote(location, environment, one, {}, seen={}, seen_plans={}, run='r', promoted='p')\n"
        "except StoreError as error:\n    print(error)"
    )
    told = done(child(code, book.location.cache, flock=errno.ENOLCK))
    assert "was not changed" in told
    assert "cannot be locked" in told
    assert not book.location.cache.exists()


def test_a_lock_that_is_held(book: Book, make_verdict: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("tunebook.store.promotion.LOCK_TIMEOUT_S", 0.1)
    with FileLock(f"{book.location.cache}.lock"), pytest.raises(StoreError, match="another process has held"):
        book.promote(make_verdict(1))


def test_what_does_not_read_back_is_not_promoted(book: Book, make_verdict: Make) -> None:
    with pytest.raises(StoreError, match="is left as it is"):
        book.promote(changed(make_verdict(1), note="\udc80"))
    assert not book.location.cache.exists()


def test_another_environment_is_refused_by_field(book: Book, make_verdict: Make) -> None:
    book.publish(make_verdict(1))
    elsewhere = Environment(hard={**book.environment.hard, "cores": "9"})
    with pytest.raises(StoreError, match="cores: 9 ≠ 8"):
        promote(book.location, elsewhere, keyed(make_verdict(2)), {}, seen={}, seen_plans={}, run="r", promoted="p")


BAD: list[tuple[str, str]] = [
    ("[", "remove it"),
    ("[]", "remove it"),
    ('{"schema": 99}', "schema 99"),
    ('{"schema": 1, "promotions": [{"promoted": "x"}]}', "run"),
    ('{"schema": 1, "promotions": [{"promoted": "x", "run": "r", "verdicts": {"k": 3}}]}', "remove it"),
    ("[" * 100_000, "remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD, ids=range(len(BAD)))
def test_a_file_of_replaced_results_that_is_none_is_one_line_and_in_nobodys_way(
    book: Book, make_verdict: Make, text: str, says: str
) -> None:
    book.publish(make_verdict(1))
    replaced_path(book.location.cache).write_text(text)
    with pytest.raises(StoreError, match=r"tuned\.json\.replaced") as caught:
        read_replaced(book.location.cache)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    with pytest.raises(StoreError):
        book.promote(make_verdict(1, speedup=2.0))
    book.publish(make_verdict(2), changed(make_verdict(1), status="likely"))
    assert book.verdicts == keyed(make_verdict(1), make_verdict(2))
    assert replaced_path(book.location.cache).read_text() == text


def test_what_it_did_not_replace_cannot_be_restored(book: Book, make_verdict: Make) -> None:
    """A file from elsewhere: entries that no promotion put anything in the place of."""
    book.publish(make_verdict(1))
    one = msgspec.to_builtins(make_verdict(1, speedup=7.0))
    document = {"schema": 1, "promotions": [{"promoted": "x", "run": "r", "verdicts": {one["problem"]: one}}]}
    replaced_path(book.location.cache).write_text(json.dumps(document))
    with pytest.raises(StoreError, match="did not replace"):
        read_replaced(book.location.cache)
