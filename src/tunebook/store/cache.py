"""Reading a cache: every entry that can be served, and a named miss for everything that cannot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tunebook.errors import StoreError
from tunebook.records import SCHEMA, CacheDocument, Environment, Plan, Record, Verdict
from tunebook.store._text import one_line
from tunebook.store.files import read_bounded
from tunebook.store.misses import Miss
from tunebook.store.run_files import MAX_RUN_BYTES, Run, looks_like_run, other_schema, parse_run

#: The largest cache that is read or written: some thirty thousand verdicts, where a large model has a few hundred.
MAX_CACHE_BYTES: Final = 64 * 2**20
#: So many bad entries are named; the rest are counted.
MAX_ENTRY_MISSES: Final = 1000
# More than any cache of that size holds, and any environment has: a file with more is made to keep its reader busy.
_MAX_ENTRIES: Final = 200_000
_MAX_HARD_FIELDS: Final = 1000
_SHOWN_FIELDS: Final = 20

_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheContents:
    """What a cache holds for this environment.

    `verdicts` by problem key and `plans` by model fingerprint are what may be served; `misses` says of everything else
    why not; `environment` is the one that the file was made in, None where it does not tell.
    """

    verdicts: dict[str, Verdict]
    plans: dict[str, Plan]
    misses: tuple[Miss, ...]
    environment: Environment | None


class _Parts(msgspec.Struct):
    """A cache document with its parts unread, so that each can fail by itself."""

    schema: msgspec.Raw = msgspec.Raw()
    environment: msgspec.Raw = msgspec.Raw()
    verdicts: msgspec.Raw = msgspec.Raw()
    plans: msgspec.Raw = msgspec.Raw()


_document = msgspec.json.Decoder(CacheDocument)
_parts = msgspec.json.Decoder(_Parts)
_integer = msgspec.json.Decoder(int)
_environment = msgspec.json.Decoder(Environment)
_entries = msgspec.json.Decoder(dict[str, msgspec.Raw])
_verdict = msgspec.json.Decoder(Verdict)
_plan = msgspec.json.Decoder(Plan)
_encoder = msgspec.json.Encoder(order="deterministic")


def read_cache(path: Path | str, environment: Environment | None) -> CacheContents:
    """Read a cache, or a run file in its stead. Whatever is wrong with the file is a miss, never an exception.

    Without `environment` the file is read for showing: nothing is compared. Work and memory are bounded by
    `MAX_CACHE_BYTES`.
    """
    path = Path(path)
    data = read_bounded(path, MAX_CACHE_BYTES)
    if isinstance(data, Miss):
        return _nothing(data)
    return parse_cache(path, data, environment)


def read_any(path: Path | str) -> CacheContents | Run:
    """A cache or a run, whichever the file holds. Raises ``StoreError``, in one line, where it is neither."""
    path = Path(path)
    data = read_bounded(path, max(MAX_CACHE_BYTES, MAX_RUN_BYTES))
    if isinstance(data, Miss):
        raise StoreError(str(data))
    if looks_like_run(data):
        return parse_run(path, data)
    contents = parse_cache(path, data, None)
    for miss in contents.misses:
        if miss.kind != "entry":
            raise StoreError(f"{miss} (neither a cache nor a run file of tunebook)")
    return contents


def parse_cache(path: Path, data: bytes, environment: Environment | None) -> CacheContents:
    """What `data` holds; `path` is for messages."""
    where = one_line(path)
    try:
        document = _document.decode(data)
        if document.schema == SCHEMA and not _says_more(data, document) and not _misfiled(document.plans):
            found = CacheContents(
                verdicts=document.verdicts, plans=document.plans, misses=(), environment=document.environment
            )
            return _compared(where, found, environment)
    except (ValueError, RecursionError):
        pass  # the slow way finds out what is wrong, and how much is not
    if looks_like_run(data):
        return _of_run(path, data, environment)
    return _piecewise(where, data, environment)


def encode_document(environment: Environment, verdicts: dict[str, Verdict], plans: dict[str, Plan]) -> bytes:
    """The bytes of a cache: sorted keys, indented for reading, the same for the same contents."""
    document = CacheDocument(schema=SCHEMA, environment=environment, verdicts=verdicts, plans=plans)
    return msgspec.json.format(_encoder.encode(document), indent=2) + b"\n"


def schema_of(data: bytes) -> int | None:
    """The number under ``schema`` in a document, whatever else it holds; None where there is none."""
    try:
        return _integer.decode(_parts.decode(data).schema)
    except (ValueError, RecursionError):
        return None


def _says_more(data: bytes, document: CacheDocument) -> bool:
    """Whether the bytes hold names that the decoded document does not, which is how a repeated key shows.

    Comparing quotation marks costs a tenth of looking for the repeated key, and never overlooks one in what tunebook
    writes: every name has two of them. An unknown field shows as well, and costs the slow way, nothing else.
    """
    # A spelt-out character can hide a quotation mark. Looking for the one byte first is twenty times as fast.
    if b"\\" in data and b"\\u" in data:
        return True
    return data.count(b'"') != _encoder.encode(document).count(b'"')


def _misfiled(plans: dict[str, Plan]) -> bool:
    return any(key != plan.fingerprint for key, plan in plans.items())


def _nothing(miss: Miss, environment: Environment | None = None) -> CacheContents:
    return CacheContents(verdicts={}, plans={}, misses=(miss,), environment=environment)


def _compared(where: str, found: CacheContents, environment: Environment | None) -> CacheContents:
    """`found`, or one miss that names each hard field in which its environment is not this one."""
    if environment is None or found.environment is None:
        return found
    detail = describe_differences(environment, found.environment)
    if detail is None:
        return found
    return _nothing(Miss(kind="environment", where=where, detail=detail), found.environment)


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
    found = CacheContents(verdicts=run.verdicts, plans=run.plans, misses=misses, environment=run.header.environment)
    return _compared(one_line(path), found, environment)


def _piecewise(where: str, data: bytes, environment: Environment | None) -> CacheContents:
    """Entry by entry: a document of which not everything can be read."""
    try:
        parts = _parts.decode(data)
    except msgspec.ValidationError as error:
        return _nothing(Miss(kind="schema", where=where, detail=f"not a cache: {one_line(error)}"))
    except RecursionError:
        return _nothing(Miss(kind="not JSON", where=where, detail="nested too deeply"))
    except ValueError as error:
        return _nothing(Miss(kind="not JSON", where=where, detail=one_line(error)))
    if not parts.schema:
        return _nothing(Miss(kind="schema", where=where, detail="not a cache: it has no field schema"))
    try:
        schema = _integer.decode(parts.schema)
    except ValueError as error:
        return _nothing(Miss(kind="schema", where=where, detail=f"field schema: {one_line(error)}"))
    if schema != SCHEMA:
        return _nothing(Miss(kind="schema", where=where, detail=other_schema(schema)))
    try:
        made_in = _environment.decode(parts.environment)
    except (ValueError, RecursionError) as error:
        return _nothing(Miss(kind="environment", where=where, detail=f"field environment: {one_line(error)}"))
    unread = CacheContents(verdicts={}, plans={}, misses=(), environment=made_in)
    if (compared := _compared(where, unread, environment)).misses:
        return compared
    misses: list[Miss] = []
    verdicts = _split(f"{where}, verdicts", parts.verdicts, misses)
    plans = _split(f"{where}, plans", parts.plans, misses)
    try:
        twice = sorted(_repeated(data)[0] & set(_Parts.__struct_fields__)) if not misses else []
    except (ValueError, RecursionError) as error:
        return _nothing(Miss(kind="not JSON", where=where, detail=one_line(error)))
    if twice:
        return _nothing(Miss(kind="schema", where=where, detail=f"field {twice[0]} occurs twice"))
    good = _served(f"{where}, verdict", verdicts, _verdict, lambda verdict: verdict.problem, misses)
    good_plans = _served(f"{where}, plan", plans, _plan, lambda plan: plan.fingerprint, misses)
    return CacheContents(verdicts=good, plans=good_plans, misses=tuple(misses), environment=made_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """The entries of one part, unread, and the keys that occur twice among them."""

    entries: dict[str, msgspec.Raw]
    repeated: set[str]


def _split(where: str, raw: msgspec.Raw, misses: list[Miss]) -> _Split:
    """The entries of one part; none, and a miss, where it is no such part."""
    if not raw:
        return _Split(entries={}, repeated=set())
    try:
        entries = _entries.decode(raw)
        if len(entries) <= _MAX_ENTRIES:
            return _Split(entries=entries, repeated=_repeated(bytes(raw))[0])
        detail = f"{len(entries)} entries are more than the {_MAX_ENTRIES} that are read"
    except (ValueError, RecursionError) as error:
        detail = one_line(error)
    misses.append(Miss(kind="entry", where=where, detail=detail))
    return _Split(entries={}, repeated=set())


def _served(
    where: str, part: _Split, decoder: msgspec.json.Decoder[_R], key_of: Callable[[_R], str], misses: list[Miss]
) -> dict[str, _R]:
    """The entries of one part that can be read; a miss is added for each of the others, a bounded number of them."""
    served: dict[str, _R] = {}
    more = 0
    for key, text in part.entries.items():
        entry = "the key occurs twice" if key in part.repeated else _one(key, text, decoder, key_of)
        if not isinstance(entry, str):
            served[key] = entry
        elif len(misses) < MAX_ENTRY_MISSES:
            misses.append(Miss(kind="entry", where=f"{where} {one_line(key)}", detail=entry))
        else:
            more += 1
    if more:
        misses.append(Miss(kind="entry", where=f"{where}s", detail=f"{more} more entries cannot be served"))
    return served


def _one(key: str, text: msgspec.Raw, decoder: msgspec.json.Decoder[_R], key_of: Callable[[_R], str]) -> _R | str:
    """One entry, or what is wrong with it."""
    try:
        entry = decoder.decode(text)
        own, inner = _repeated(bytes(text))
    except (ValueError, RecursionError) as error:
        return one_line(error)
    if own or inner:
        return f"field {one_line(min(own | inner))} occurs twice"
    if key_of(entry) != key:
        return f"it is about {one_line(key_of(entry))}"
    return entry


def _repeated(data: bytes) -> tuple[set[str], set[str]]:
    """The names that occur twice in the object that `data` is, and those that do in any object inside it."""
    last: set[str] = set()
    inner: set[str] = set()

    def note(pairs: list[tuple[str, object]]) -> None:
        # The outermost object is the one that is closed last.
        nonlocal last
        inner.update(last)
        last = set()
        if len({name for name, _ in pairs}) < len(pairs):
            last = {name for name, times in Counter(name for name, _ in pairs).items() if times > 1}

    # Numbers are not looked at, so they are not converted: a long one takes a long time. Nor are characters.
    text = data.decode("utf-8", "replace")
    json.loads(text, object_pairs_hook=note, parse_int=len, parse_float=len, strict=False)
    return last, inner
