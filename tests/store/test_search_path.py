"""The search path: what was shipped lies under the user's own cache, entry by entry, and is only ever read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunebook.envs import envs
from tunebook.errors import EnvironmentVariableError
from tunebook.records import Environment, Header, Member, Offered, Plan, Verdict, VerdictLine
from tunebook.store import CacheContents, read_cache
from tunebook.store.bundles import encode_bundle
from tunebook.store.cache import encode_document
from tunebook.store.run_writer import encode_line
from tunebook.store.search_path import origin_of, over_shipped, read_search_path

OTHER = Environment(hard={"device": "cpu", "isa": "sse", "cores": "8"})


class Shelf:
    """Caches on a search path."""

    def __init__(self, folder: Path, environment: Environment, make_verdict: Any) -> None:
        self.folder, self.environment = folder, environment
        self._make = make_verdict

    def verdict(self, size: int, speedup: float = 1.5, **changes: Any) -> Verdict:
        made = self._make(size, speedup=speedup)
        changed: Verdict = msgspec.structs.replace(made, **{"rounds": 20, **changes})
        return changed

    def document(self, *verdicts: Verdict, plans: Sequence[Plan] = (), environment: Environment | None = None) -> bytes:
        by_key = {verdict.problem: verdict for verdict in verdicts}
        return encode_document(environment or self.environment, by_key, {plan.fingerprint: plan for plan in plans})

    def cache(self, name: str, *verdicts: Verdict, **more: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.document(*verdicts, **more))
        return path

    @contextmanager
    def read(self, *path: Path, own: Path | None = None) -> Iterator[tuple[CacheContents, Any, CacheContents]]:
        """The user's own, the entries of the path, and both."""
        with envs.TUNEBOOK_CACHE_PATH.override(tuple(path)):
            mine = read_cache(own or self.folder / "none.json", self.environment)
            shipped = read_search_path(self.environment)
            yield mine, shipped, over_shipped(mine, shipped)

    def misses(self, *path: Path) -> list[str]:
        with self.read(*path) as (_, shipped, both):
            assert not both.verdicts
            assert all(one.problem is not None for one in shipped)
            return [str(miss) for one in shipped for miss in one.misses]


@pytest.fixture
def shelf(tmp_path: Path, environment: Environment, make_verdict: Any) -> Shelf:
    return Shelf(tmp_path / "shelf", environment, make_verdict)


def test_the_users_own_goes_first_then_the_order_of_the_path(shelf: Shelf, make_plan: Any) -> None:
    sizes = (1, 2, 4, 8)
    own = shelf.cache("own.json", shelf.verdict(1, 1.1), plans=[make_plan("a", run="own")])
    one = shelf.cache(
        "one.json", *(shelf.verdict(n, 1.2) for n in sizes[:2]), plans=[make_plan("a"), make_plan("b", run="1")]
    )
    two = shelf.cache(
        "two.json", *(shelf.verdict(n, 1.3) for n in sizes[:3]), plans=[make_plan("b"), make_plan("c", run="2")]
    )
    with shelf.read(one, two, own=own) as (mine, shipped, both):
        found = {key: verdict.speedup for key, verdict in both.verdicts.items()}
        assert found == {shelf.verdict(n).problem: s for n, s in zip(sizes, (1.1, 1.2, 1.3), strict=False)}
        assert {key: plan.run for key, plan in both.plans.items()} == {"a": "own", "b": "1", "c": "2"}
        assert both.environment == shelf.environment
        origins = [origin_of(verdict, mine, shipped) for verdict in both.verdicts.values()]
        assert {one.path.name if one else "" for one in origins} == {"", "one.json", "two.json"}
        assert [o.path if (o := origin_of(both.plans[k], mine, shipped)) else None for k in "abc"] == [None, one, two]
        assert origin_of(shelf.verdict(8), mine, shipped) is None
    with shelf.read(two, one, own=own) as (_, _, both):
        assert both.verdicts[shelf.verdict(2).problem].speedup == 1.3


def test_a_shipped_plan_that_rests_on_another_winner_than_the_users_own_serves_nothing(
    shelf: Shelf, make_plan: Any
) -> None:
    mine, theirs = shelf.verdict(1), shelf.verdict(1)
    theirs = msgspec.structs.replace(
        theirs,
        winner="default",
        frontier=(Member(tactic="default", ratio=1.0, low=1.0, high=1.0),),
        offered={**theirs.offered, "default": Offered(version="1", space="")},
    )
    plan = msgspec.structs.replace(make_plan("a"), tactics={mine.problem: "default"})
    shipped = shelf.cache("shipped.json", theirs, plans=[plan])
    for verdict, serves in ((mine, False), (theirs, True), (shelf.verdict(2), True)):
        own = shelf.cache("own.json", verdict)
        with shelf.read(shipped, own=own) as (_, _, both):
            assert dict(both.plans) == ({"a": plan} if serves else {})
    unmeasured = shelf.cache("own.json", msgspec.structs.replace(mine, rounds=0))
    with shelf.read(shipped, own=unmeasured) as (_, _, both):
        assert dict(both.plans) == {"a": plan}


def test_what_lies_under_the_users_own_is_not_even_read(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    own = shelf.cache("own.json", shelf.verdict(1))
    broken = shelf.cache("broken.json", shelf.verdict(1))
    broken.write_bytes(broken.read_bytes().replace(b'"proven"', b'"certain"'))
    with shelf.read(broken, own=own) as (_, _, both):
        assert both.verdicts[shelf.verdict(1).problem] == shelf.verdict(1)
        assert both.verdicts.get("no such problem") is None
    assert not caplog.records


def test_the_users_own_stays_however_well_the_other_is_supported(shelf: Shelf) -> None:
    own = shelf.cache("own.json", shelf.verdict(1, 1.1, status="unresolved", rounds=3))
    shipped = shelf.cache("shipped.json", shelf.verdict(1, 1.9))
    with shelf.read(shipped, own=own) as (_, _, both):
        assert [verdict.speedup for verdict in both.verdicts.values()] == [1.1]


def test_what_was_only_left_out_gives_way_to_what_was_measured(shelf: Shelf) -> None:
    note = "left out: the budget was spent"
    own = shelf.cache("own.json", shelf.verdict(1, 1.0, status="unresolved", rounds=0, note=note))
    shipped = shelf.cache("shipped.json", shelf.verdict(1, 1.9))
    with shelf.read(shipped, own=own) as (_, _, both):
        assert [verdict.speedup for verdict in both.verdicts.values()] == [1.9]
    with shelf.read(own, shipped) as (_, _, both):
        assert [verdict.speedup for verdict in both.verdicts.values()] == [1.9]


def test_an_entry_may_be_a_cache_a_run_a_bundle_or_a_directory(shelf: Shelf, header: Header) -> None:
    digest = shelf.environment.digest
    cache = shelf.cache("c.json", shelf.verdict(1))
    run = shelf.folder / "r.jsonl"
    run.write_bytes(encode_line(header) + encode_line(VerdictLine(verdict=shelf.verdict(2))))
    bundle = shelf.folder / "b.tunebook"
    bundle.write_bytes(encode_bundle(shelf.document(shelf.verdict(4)), {}))
    kept = shelf.cache(f"dir/autotune/{digest}/winners.json", shelf.verdict(8)).parents[2]
    (kept / f"{digest}.tunebook").write_bytes(b"not looked at where there is a cache")
    bundles = shelf.folder / "bundles"
    bundles.mkdir()
    (bundles / f"{digest}.tunebook").write_bytes(encode_bundle(shelf.document(shelf.verdict(16)), {}))
    (bundles / f"{OTHER.digest}.tunebook").write_bytes(b"of another environment, and not looked at")
    shards = shelf.cache(f"sharded/autotune/{digest}/winners.json.d/host-1-a-0.json", shelf.verdict(32)).parents[3]
    with shelf.read(cache, run, bundle, kept, bundles, shards) as (_, shipped, both):
        assert sorted(both.verdicts) == sorted(shelf.verdict(2**n).problem for n in range(6))
        assert [miss for one in shipped for miss in one.misses if miss.kind != "unreadable"] == []
        assert [len(one.contents.verdicts) for one in shipped] == [1] * 6


def test_what_is_wrong_with_an_entry_is_one_line_that_names_it(shelf: Shelf) -> None:
    shelf.folder.mkdir()
    digest = shelf.environment.digest
    absent, folder = shelf.folder / "absent.json", shelf.folder / "empty"
    folder.mkdir()
    torn = shelf.folder / "torn.json"
    torn.write_bytes(shelf.document(shelf.verdict(1))[:-40])
    cut = shelf.folder / "cut.tunebook"
    cut.write_bytes(encode_bundle(shelf.document(shelf.verdict(1)), {})[:-40])
    foreign = shelf.cache("foreign.json", shelf.verdict(1), environment=OTHER)
    shipped = shelf.folder / "foreign.tunebook"
    shipped.write_bytes(encode_bundle(shelf.document(shelf.verdict(1), environment=OTHER), {}))
    newer = shelf.folder / "newer.json"
    newer.write_bytes(shelf.document().replace(b'"schema": 1', b'"schema": 99'))
    os.mkfifo(shelf.folder / "pipe")
    for path, kind, says in (
        (absent, "unreadable", "there is no such file"),
        (folder, "unreadable", f"neither autotune/{digest}/winners.json nor {digest}.tunebook"),
        (torn, "not JSON", "truncated"),
        (cut, "schema", "not a bundle: it does not end as a bundle does"),
        (foreign, "environment", "made on another machine (here ≠ there): isa: avx512 ≠ sse"),
        (shipped, "environment", "made on another machine (here ≠ there): isa: avx512 ≠ sse"),
        (newer, "schema", "schema 99 is newer"),
        (shelf.folder / "pipe", "unreadable", "it is a named pipe, not a file"),
    ):
        (line,) = shelf.misses(path)
        assert line.startswith(f"TUNEBOOK_CACHE_PATH, {path}: {kind}: ")
        assert says in line
    assert len(shelf.misses(absent, folder, torn, cut, foreign, shipped, newer)) == 7


def test_a_bad_entry_takes_nothing_from_the_others(shelf: Shelf) -> None:
    good = shelf.cache("good.json", shelf.verdict(1))
    half = shelf.folder / "half.json"
    half.write_bytes(shelf.document(shelf.verdict(2), shelf.verdict(4)).replace(b'"proven"', b'"certain"', 1))
    with shelf.read(shelf.folder / "absent", half, good) as (_, shipped, both):
        assert len(both.verdicts) == 2
        assert [one.problem is None for one in shipped] == [False, True, True]
        (miss,) = shipped[1].misses
        assert miss.where.startswith(f"TUNEBOOK_CACHE_PATH, {half}, verdict linear|")


def test_without_the_variable_nothing_changes(shelf: Shelf) -> None:
    own = shelf.cache("own.json", shelf.verdict(1))
    with shelf.read(own=own) as (mine, shipped, both):
        assert shipped == ()
        assert both is mine


def test_a_value_that_is_no_list_of_paths_is_an_error(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", "/a:~nobody-of-that-name/b")
    with pytest.raises(EnvironmentVariableError, match="TUNEBOOK_CACHE_PATH="):
        read_search_path(shelf.environment)
