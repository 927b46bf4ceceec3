"""Reading a cache: every entry that can be served, and a named miss for everything that cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tunebook.errors import StoreError
from tunebook.records import SCHEMA, CacheDocument, Environment, Plan, Verdict
from tunebook.store._shards import Shards, layered, read_shards
from tunebook.store._text import one_line
from tunebook.store.bundles import read_document
from tunebook.store.entries import Entries
from tunebook.store.files import Identity
from tunebook.store.misses import Miss, Misses
from tunebook.store.objects import Members, members, read_record, two_levels
from tunebook.store.run_files import MAX_RUN_BYTES, Run, looks_like_run, other_schema, parse_run

#: The largest cache that is read or written: some thirty thousand verdicts, where a large model has a few hundred.
MAX_CACHE_BYTES: Final = 64 * 2**20
# More than any cache of that size holds, and any environment has: a file with more is made to keep its reader busy.
_MAX_ENTRIES: Final = 200_000
_MAX_HARD_FIELDS: Final = 1000
_SHOWN_FIELDS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheContents:
    """What a cache holds for this environment.

    `verdicts` by problem key and `plans` by model fingerprint are what may be served. Each is read and validated when it
    is first looked up; `len` and iteration read them all. `environment` is the one that the file was made in, None where
    it does not tell.
    """

    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    environment: Environment | None
    found: Misses = field(repr=False, compare=False)

    @property
    def misses(self) -> tuple[Miss, ...]:
        """Of everything that is not served why not, as far as it is known.

        What is wrong with the file, and each repeated key, is known at once; what is wrong with an entry when it has been
        looked up, and all of it once `verdicts` and `plans` were iterated over.
        """
        return self.found.known()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """A document of this schema, its entries unread; `trouble` is about a part that is none."""

    environment: bytes | msgspec.Raw
    verdicts: Members
    plans: Members
    trouble: tuple[Miss, ...] = ()


class _Shell(msgspec.Struct):
    schema: msgspec.Raw


_FIELDS: Final = ("schema", "environment", "verdicts", "plans")
_shell = msgspec.json.Decoder(_Shell)
_integer = msgspec.json.Decoder(int)
_environment = msgspec.json.Decoder(Environment)
_verdict = msgspec.json.Decoder(Verdict)
_plan = msgspec.json.Decoder(Plan)
_encoder = msgspec.json.Encoder(order="deterministic")


def read_cache(path: Path | str, environment: Environment | None) -> CacheContents:
    """Read a cache, or a run file or a bundle in its stead. Whatever is wrong with the file is a miss, never an exception.

    Without `environment` the file is read for showing: nothing is compared. With one it is read for serving: the caller
    says what `misses` holds now, and an entry that is looked up later and cannot be served is logged. What others have
    published and nobody has merged into the file yet, the shards beside it, is served like the file itself. Work and memory
    are bounded by `MAX_CACHE_BYTES` and `MAX_SHARD_BYTES`.
    """
    path = Path(path)
    shards, written = _beside(path, environment)
    data = read_document(path, MAX_CACHE_BYTES)
    contents = _nothing(data) if isinstance(data, Miss) else parse_cache(path, data, environment)
    contents = layered(contents, written, shards)
    contents.found.loud = environment is not None
    return contents


def read_any(path: Path | str) -> CacheContents | Run:
    """A cache or a run, whichever the file holds; of a bundle its cache. Raises ``StoreError``, in one line, for any other."""
    path = Path(path)
    shards, written = _beside(path, None)
    data = read_document(path, max(MAX_CACHE_BYTES, MAX_RUN_BYTES))
    if isinstance(data, Miss):
        if data.kind == "absent" and shards.found:
            return layered(_nothing(data), written, shards)
        raise StoreError(str(data))
    if looks_like_run(data):
        return parse_run(path, data)
    contents = layered(parse_cache(path, data, None), written, shards)
    for miss in contents.misses:
        if miss.kind != "entry":
            raise StoreError(f"{miss} (neither a cache nor a run file of tunebook)")
    return contents


def _beside(path: Path, environment: Environment | None) -> tuple[Shards, int]:
    """The shards of a cache, and when it was last written itself."""
    try:
        cache = Path(os.path.realpath(path))
    except (OSError, ValueError):  # no path at all; reading it says so
        return Shards(), 0
    shards = read_shards(cache, environment, parse_cache)
    there = Identity.of(cache) if shards.found else None
    return shards, there.written if there else 0


def parse_cache(path: Path, data: bytes, environment: Environment | None) -> CacheContents:
    """What `data` holds; `path` is for messages."""
    where = one_line(path)
    pieces: _Pieces | Miss | None = _taken_apart(data)
    if pieces is None and looks_like_run(data):
        return _of_run(path, data, environment)
    if pieces is None:
        pieces = _looked_through(where, data)
    if isinstance(pieces, Miss):
        return _nothing(pieces)
    try:
        made_in = read_record(pieces.environment, _environment)
    except (ValueError, RecursionError) as error:
        return _nothing(Miss(kind="environment", where=where, detail=f"field environment: {one_line(error)}"))
    if (miss := _elsewhere(where, made_in, environment)) is not None:
        return _nothing(miss, made_in)
    found = Misses(where, *pieces.trouble)
    return CacheContents(
        verdicts=Entries(f"{where}, verdict", pieces.verdicts, _verdict, lambda verdict: verdict.problem, found),
        plans=Entries(f"{where}, plan", pieces.plans, _plan, lambda plan: plan.fingerprint, found),
        environment=made_in,
        found=found,
    )


def encode_document(environment: Environment, verdicts: dict[str, Verdict], plans: dict[str, Plan]) -> bytes:
    """The bytes of a cache: sorted keys, indented for reading, the same for the same contents."""
    document = CacheDocument(schema=SCHEMA, environment=environment, verdicts=verdicts, plans=plans)
    return msgspec.json.format(_encoder.encode(document), indent=2) + b"\n"


def schema_of(data: bytes) -> int | None:
    """The number under ``schema`` in a document, whatever else it holds; None where there is none."""
    try:
        return _integer.decode(_shell.decode(data).schema)
    except (ValueError, RecursionError):
        return None


def _taken_apart(data: bytes) -> _Pieces | None:
    """The pieces of a document in which nothing is wrong but for single entries, in one pass; None for any other."""
    try:
        parts = two_levels(data, _MAX_ENTRIES)
    except (ValueError, RecursionError):
        return None
    if parts is None or parts.get("schema") != SCHEMA:
        return None
    environment, verdicts, plans = (parts.get(name, {}) for name in _FIELDS[1:])
    if isinstance(environment, int) or isinstance(verdicts, int) or isinstance(plans, int):
        return None
    return _Pieces(
        environment=_encoder.encode(environment), verdicts=Members(entries=verdicts), plans=Members(entries=plans)
    )


def _looked_through(where: str, data: bytes) -> _Pieces | Miss:
    """The pieces of a document level by level, which tells what is wrong with it and how much is not."""
    try:
        document = members(data, _MAX_ENTRIES)
    except msgspec.ValidationError as error:
        return Miss(kind="schema", where=where, detail=f"not a cache: {one_line(error)}")
    except RecursionError:
        return Miss(kind="not JSON", where=where, detail="nested too deeply")
    except ValueError as error:
        return Miss(kind="not JSON", where=where, detail=one_line(error))
    parts = document.entries
    if "schema" not in parts:
        return Miss(kind="schema", where=where, detail="not a cache: it has no field schema")
    try:
        schema = _integer.decode(parts["schema"])
    except ValueError as error:
        return Miss(kind="schema", where=where, detail=f"field schema: {one_line(error)}")
    if schema != SCHEMA:
        return Miss(kind="schema", where=where, detail=other_schema(schema))
    for name in _FIELDS:
        if name in document.repeated:
            return Miss(kind="schema", where=where, detail=f"field {name} occurs twice")
    trouble: list[Miss] = []
    return _Pieces(
        environment=parts.get("environment", b""),
        verdicts=_part(f"{where}, verdicts", parts.get("verdicts"), trouble),
        plans=_part(f"{where}, plans", parts.get("plans"), trouble),
        trouble=tuple(trouble),
    )


def _part(where: str, text: msgspec.Raw | None, trouble: list[Miss]) -> Members:
    """The entries of one part; none, and a miss, where it is no such part."""
    try:
        return Members(entries={}) if text is None else members(text, _MAX_ENTRIES)
    except (ValueError, RecursionError) as error:
        trouble.append(Miss(kind="entry", where=where, detail=one_line(error)))
        return Members(entries={})


def _nothing(miss: Miss, environment: Environment | None = None) -> CacheContents:
    return CacheContents(verdicts={}, plans={}, environment=environment, found=Misses(miss.where, miss))


def _elsewhere(where: str, made_in: Environment, environment: Environment | None) -> Miss | None:
    """The miss that names each hard field in which a file's environment is not this one, if there are any."""
    if environment is None:
        return None
    detail = describe_differences(environment, made_in)
    return None if detail is None else Miss(kind="environment", where=where, detail=detail)


def describe_differences(here: Environment, there: Environment) -> str | None:
    """The hard fields in which this environment and a file's differ, a bounded number of them; None: they do not."""
    if len(there.hard) > _MAX_HARD_FIELDS:
        return f"its environment has {len(there.hard)} hard fields, more than the {_MAX_HARD_FIELDS} that are compared"
    differences = here.differences(there)
    if not differences:
        return None
    shown = [one_line(difference, 120) for difference in differences[:_SHOWN_FIELDS]]
    more = [f"{len(differences) - _SHOWN_FIELDS} more"] if len(differences) > _SHOWN_FIELDS else []
    return f"made on another machine (here ≠ there): {'; '.join(shown + more)}"


def _of_run(path: Path, data: bytes, environment: Environment | None) -> CacheContents:
    try:
        run = parse_run(path, data)
    except StoreError as error:
        return _nothing(
            Miss(kind="schema", where=one_line(path), detail=str(error).removeprefix(f"{one_line(path)}: "))
        )
    misses = run.misses
    if run.torn:
        misses += (Miss(kind="entry", where=one_line(path), detail="the last line is cut off"),)
    made_in = run.header.environment
    if (miss := _elsewhere(one_line(path), made_in, environment)) is not None:
        return _nothing(miss, made_in)
    found = Misses(one_line(path), *misses)
    return CacheContents(verdicts=run.verdicts, plans=run.plans, environment=made_in, found=found)
