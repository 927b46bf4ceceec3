"""What promotions replaced: a file beside the cache, from which a rollback restores it. The newest promotion comes last."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tunebook.errors import StoreError
from tunebook.records import SCHEMA, Environment, Plan, Record, Verdict
from tunebook.store._fold import present
from tunebook.store._merge import chosen_verdict
from tunebook.store._results import Results
from tunebook.store._shards import read_shards
from tunebook.store._text import one_line
from tunebook.store.cache import MAX_CACHE_BYTES, parse_cache
from tunebook.store.files import Identity, read_bounded, replace_atomically
from tunebook.store.location import Location
from tunebook.store.misses import Miss
from tunebook.store.run_files import other_schema

#: So many promotions can be taken back, the newest first; older ones are forgotten.
MAX_PROMOTIONS: Final = 8
#: The largest file of what they replaced: older promotions are forgotten where it would be larger.
MAX_REPLACED_BYTES: Final = MAX_CACHE_BYTES


class Replaced(Record, frozen=True, kw_only=True):
    """One promotion, and what it replaced.

    `promoted` is the local time, `run` the path of the run, `narrowed` the options that narrowed it. `put` and `put_plans`
    give, by problem key and fingerprint, the digest of what it put into the cache (empty: a plan was taken out); `verdicts`
    and `plans` what was there before (a key that is missing: nothing was).
    """

    promoted: str
    run: str
    narrowed: str = ""
    put: dict[str, str] = msgspec.field(default_factory=dict)
    verdicts: dict[str, Verdict] = msgspec.field(default_factory=dict)
    put_plans: dict[str, str] = msgspec.field(default_factory=dict)
    plans: dict[str, Plan] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, keys, known in (("verdict", self.verdicts, self.put), ("plan", self.plans, self.put_plans)):
            for key in keys:
                if key not in known:
                    raise ValueError(f"it keeps a {what} on {key}, which it did not replace")


class ReplacedDocument(Record, frozen=True, kw_only=True, omit_defaults=False):
    """The file: the promotions that can be taken back, the oldest first."""

    schema: int
    promotions: tuple[Replaced, ...] = ()


class _Schema(msgspec.Struct):
    schema: int


_decoder = msgspec.json.Decoder(ReplacedDocument)
_schema = msgspec.json.Decoder(_Schema)
_encoder = msgspec.json.Encoder(order="deterministic")


def replaced_path(cache: Path) -> Path:
    """Where what promotions replaced is kept; `cache` is the file itself, no link to it."""
    return cache.with_name(f"{cache.name}.replaced")


def digest(record: Verdict | Plan) -> str:
    """Tells whether an entry of the cache is still the one that was put in."""
    return hashlib.sha256(_encoder.encode(record)).hexdigest()[:16]


def read_replaced(cache: Path) -> tuple[Replaced, ...]:
    """The promotions that can be taken back; none where there is no file. Raises ``StoreError`` for a file that is none."""
    path = replaced_path(cache)
    data = read_bounded(path, MAX_REPLACED_BYTES)
    if isinstance(data, Miss):
        if data.kind in ("absent", "empty"):
            return ()
        raise StoreError(f"{data}; what promotions replaced cannot be read")
    try:
        schema = _schema.decode(data).schema
        if schema != SCHEMA:
            raise StoreError(f"{one_line(path)}: {other_schema(schema)}")
        return _decoder.decode(data).promotions
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{one_line(path)}: {one_line(error)}; tunebook did not write this, so nothing can be rolled back: remove it"
        ) from None


def write_replaced(cache: Path, promotions: Sequence[Replaced]) -> int:
    """Keep these, the oldest first; returns how many of the oldest there was no room for.

    The file goes with the last promotion. Raises ``OSError``; ``StoreError`` where the newest alone is too large.
    """
    path = replaced_path(cache)
    if not promotions:
        path.unlink(missing_ok=True)
        return 0
    kept = tuple(promotions[-MAX_PROMOTIONS:])
    while len(data := _encoder.encode(ReplacedDocument(schema=SCHEMA, promotions=kept)) + b"\n") > MAX_REPLACED_BYTES:
        kept = kept[1:]
        if not kept:
            raise StoreError(
                f"{one_line(path)}: what is replaced takes {len(data)} bytes, more than the {MAX_REPLACED_BYTES} that are kept; "
                "promote less at a time, with --op"
            )
    replace_atomically(path, data)
    return len(promotions) - len(kept)


def remember(location: Location, target: Path, environment: Environment, ours: Results) -> None:
    """Before results are merged into the cache: keep those that give way to a promoted verdict, for its rollback.

    Without it a result that was published after a promotion, and was not better supported than what was promoted, would
    be in no place at all once that is rolled back. To be called under the lock. Where it cannot be kept nothing is raised:
    results are published all the same. Raises ``StoreError`` as `present` does.
    """
    if not replaced_path(target).exists():
        return
    there = Identity.of(target)
    shards = read_shards(target, environment, parse_cache, oldest=True)
    main = present(location, target, environment)
    later = [s.verdicts for s in shards.found if s.state != "foreign" and s.written > (there.written if there else 0)]
    try:
        before = now = read_replaced(target)
        for coming in (*later, ours.verdicts):
            now = given_way(now, main.verdicts, coming)
        if now != before:
            write_replaced(target, now)
    except (OSError, StoreError):
        pass


def given_way(
    promotions: Sequence[Replaced], present: Mapping[str, Verdict], coming: Mapping[str, Verdict]
) -> tuple[Replaced, ...]:
    """The promotions, in what they replaced those of `coming` that give way to a promoted verdict among the `present` ones."""
    found = list(promotions)
    for key, verdict in coming.items():
        there = present.get(key)
        if there is None or verdict == there or chosen_verdict(there, verdict) == verdict:
            continue
        for place in reversed(range(len(found))):
            promotion = found[place]
            if key not in promotion.put:
                continue
            former = promotion.verdicts.get(key)
            if promotion.put[key] != digest(there) or former == verdict:
                break
            if former is None or chosen_verdict(former, verdict) == verdict:
                found[place] = msgspec.structs.replace(promotion, verdicts={**promotion.verdicts, key: verdict})
                break
            there = former  # it gives way to that as well, which may have been promoted in its turn
    return tuple(found)
