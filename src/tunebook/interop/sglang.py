"""SGLang's tree of FlashInfer caches: a leaf a rank, and those of single engine starts under ``runs/``.

A leaf is FlashInfer's own. ``…/autotune/<version>/<arch>/<model>/rank_tp0_pp0_dp0.json`` is a v1 file, and
``runs/rank_tp0_pp0_dp0.<time>.json`` beside it, where SGLANG_FLASHINFER_AUTOTUNE_CACHE=0, the same of one start; newer
versions keep v2 stores, in ``…/managed/<model>/rank_tp0_pp0_dp0/`` and ``…/managed/runs/<time>/<model>/rank_…/``. Any
directory of the tree can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunebook.errors import StoreError, UsageError
from tunebook.interop import flashinfer_v1, flashinfer_v2
from tunebook.interop._flashinfer import entries_of
from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss
from tunebook.interop._reading import MAX_ENTRIES, canonical, read_bytes, refuse, replace_tree
from tunebook.store import Miss

#: ``rank_tp0_pp0_dp0``, with ``_gpu<UUID>`` where one device alone may use it (MegaMoE); for one start its time behind it, and a
#: random part, which older versions leave out.
LEAF: Final = re.compile(
    r"(?P<rank>rank_tp\d+_pp\d+_dp\d+(?:_gpu[A-Za-z0-9-]+)?)(?:\.(?P<time>\d{8}_\d{6}))?(?:\.[A-Za-z0-9-]+)?"
)
TIME: Final = re.compile(r"\d{8}_\d{6}")
RUNS: Final = "runs"
#: What ranks that run the same layers do not share of their names.
_OWN_PART: Final = re.compile(r"_tp\d+(?=_pp)|_gpu[A-Za-z0-9-]+(?=[./]|$)")
#: What the leaf of a book that is of no rank is called.
_FIRST: Final = "rank_tp0_pp0_dp0"
_MAX_DEPTH: Final = 8
_MAX_DIRECTORIES: Final = 20_000
_MAX_LEAVES: Final = 10_000

Leaf = flashinfer_v1.Content | flashinfer_v2.Content


@dataclass(frozen=True, kw_only=True)
class Content:
    """Each leaf by its path under the root: of a v1 file with its ending, of a v2 store its directory's."""

    leaves: dict[str, Leaf]

    def current(self) -> dict[str, Leaf]:
        """The leaves that the engine serves; those of single starts where there are no others."""
        served = {name: leaf for name, leaf in self.leaves.items() if not is_run(name)}
        return served or self.leaves

    def as_v1(self, path: Path) -> flashinfer_v1.Content:
        """The v1 file of the only rank. Raises ``UsageError`` where there are several."""
        leaves = self.current()
        if len(leaves) != 1:
            raise UsageError(f"{path}: it holds {len(leaves)} ranks; name one of them: {path}/{min(leaves)}")
        ((name, leaf),) = leaves.items()
        return leaf if isinstance(leaf, flashinfer_v1.Content) else leaf.as_v1(path / name)


class SGLangTree:
    """`Format` of that tree, or of any directory of it."""

    name = "sglang"
    title = "SGLang's tree of FlashInfer caches"
    fidelity: Fidelity = "bytes"
    lost = (
        Loss("files of the tree that hold no tactics (locks, what is being written)"),
        Loss("entries of v2 stores that FlashInfer does not serve: they are named when the tree is read"),
        Loss("which rank it is of; it becomes rank_tp0_pp0_dp0", "others"),
    )

    def detects(self, path: Path, head: bytes) -> bool:
        try:
            return head == b"" and next(leaves_below(path), None) is not None
        except StoreError:  # too large to be searched
            return False

    def read(self, path: Path) -> ForeignBook:
        leaves: dict[str, Leaf] = {}
        misses: list[Miss] = []
        for leaf in leaves_below(path):
            if len(leaves) >= _MAX_LEAVES:
                refuse(path, f"more than {_MAX_LEAVES} files of ranks are not read")
            name = leaf.relative_to(path).as_posix()
            if leaf.is_dir():
                leaves[name], missed = flashinfer_v2.read_store(leaf)
                misses.extend(missed)
            else:
                leaves[name] = found = flashinfer_v1.parse(leaf, read_bytes(leaf))
                misses.extend(found.misses(leaf))
        if not leaves:
            refuse(path, "there is no file or store of a rank in it (rank_tp…_pp…_dp…)")
        return _book(path, Content(leaves=leaves), tuple(misses))

    def write(self, book: ForeignBook, path: Path) -> None:
        files: dict[str, bytes] = {}
        for name, leaf in _content(book).leaves.items():
            if isinstance(leaf, flashinfer_v1.Content):
                files[name] = flashinfer_v1.encode(leaf)
            else:
                files |= {f"{name}/{below}": data for below, data in leaf.files()}
        replace_tree(path, files)

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        one, other = _content(first).leaves, _content(second).leaves
        merged = {**other, **one}
        for name in one.keys() & other.keys():
            v1 = isinstance(one[name], flashinfer_v1.Content)
            kind = flashinfer_v1.FlashInferV1() if v1 else flashinfer_v2.FlashInferV2()
            mine, theirs = (
                ForeignBook(path=book.path / name, format=kind.name, facts={}, entries={}, content=leaf)
                for book, leaf in ((first, one[name]), (second, other[name]))
            )
            merged[name] = kind.merge(mine, theirs).content
        return _book(first.path, Content(leaves={name: merged[name] for name in sorted(merged)}))


FORMAT: Format = SGLangTree()


def _book(path: Path, content: Content, misses: tuple[Miss, ...] = ()) -> ForeignBook:
    entries = _entries(path, content)
    return ForeignBook(
        path=path,
        format=SGLangTree.name,
        facts=_facts(content, entries),
        entries={entry.key: entry for ranked in entries.values() for entry in ranked.values()},
        misses=misses,
        content=content,
    )


def leaves_below(path: Path) -> Iterator[Path]:
    """Every file and store of a rank under `path`, sorted; links to directories are not followed."""
    for seen, (here, names, files) in enumerate(os.walk(path), 1):
        depth = len(Path(here).relative_to(path).parts)
        if seen > _MAX_DIRECTORIES:
            refuse(path, f"more than {_MAX_DIRECTORIES} directories are not searched")
        stores = {name for name in names if LEAF.fullmatch(name) and (Path(here, name) / flashinfer_v2.SCHEMA).is_dir()}
        names[:] = sorted(set(names) - stores) if depth < _MAX_DEPTH else []
        ranked = [name for name in files if name.endswith(".json") and LEAF.fullmatch(name.removesuffix(".json"))]
        yield from (Path(here, name) for name in sorted([*stores, *ranked]))


def rank_of(name: str) -> tuple[str, str]:
    """Of which model and rank a leaf is, by its path."""
    *parents, own = Path(name).parts
    found = LEAF.fullmatch(own.removesuffix(".json"))
    kept = [part for part in parents if part != RUNS and not TIME.fullmatch(part)]
    return "/".join(kept), found["rank"] if found else own


def is_run(name: str) -> bool:
    """Whether a leaf, by its path, is of a single start."""
    *parents, own = Path(name).parts
    return any(part == RUNS or TIME.fullmatch(part) for part in parents) or bool(TIME.search(own))


def _content(book: ForeignBook) -> Content:
    if isinstance(book.content, Content):
        return book.content
    if isinstance(book.content, flashinfer_v2.Content):
        return Content(leaves={_FIRST: book.content})
    return Content(leaves={f"{_FIRST}.json": flashinfer_v1.content_of(book)})


def _entries(path: Path, content: Content) -> dict[str, dict[str, Entry]]:
    """By leaf and the problem's own key, the entries of the current leaves; their keys have the leaf before them."""
    count = 0
    found: dict[str, dict[str, Entry]] = {}
    for name, leaf in content.current().items():
        if isinstance(leaf, flashinfer_v1.Content):
            own = leaf.entries()
        else:
            several = len(leaf.environments) > 1
            own = {
                f"{environment}: {key}" if several else key: entry
                for environment, one in leaf.environments.items()
                for key, entry in entries_of(one.records()).items()
            }
        count += len(own)
        if count > MAX_ENTRIES:
            refuse(path, f"more than {MAX_ENTRIES} entries are not read")
        before = name.removesuffix(".json")
        before = name if before in found else before  # a store beside a file of the same rank
        found[before] = {
            key: Entry(
                key=f"{before}: {key}",
                op=entry.op,
                problem=f"{before}: {entry.problem}",
                choice=entry.choice,
                trials=entry.trials,
            )
            for key, entry in own.items()
        }
    return found


def _facts(content: Content, entries: Mapping[str, Mapping[str, Entry]]) -> dict[str, str]:
    """What all leaves agree on of their environments, and what they do not agree on."""
    current = content.current()
    environments = [environment for leaf in current.values() for environment in _environments(leaf)]
    facts: dict[str, str] = {}
    for name in dict.fromkeys(name for environment in environments for name in environment):
        values = sorted({environment.get(name, "not told") for environment in environments})
        facts[name] = " or ".join(values)
    facts["ranks"] = str(len({rank_of(name) for name in current}))
    if runs := sum(is_run(name) for name in content.leaves):
        facts[RUNS] = str(runs)
    if (differing := _disagreeing(entries)) is not None:
        facts["problems for which ranks chose differently"] = str(differing)
    return facts


def _disagreeing(entries: Mapping[str, Mapping[str, Entry]]) -> int | None:
    """For how many problems ranks that run the same layers chose differently. None where no two do, or they are of runs."""
    groups: dict[str, list[Mapping[str, Entry]]] = {}
    for name, own in entries.items():
        if not is_run(name):
            groups.setdefault(_OWN_PART.sub("", name), []).append(own)
    together = [group for group in groups.values() if len(group) > 1]
    if not together:
        return None
    return sum(
        len({own[key].choice for own in group if key in own}) > 1
        for group in together
        for key in dict.fromkeys(key for own in group for key in own)
    )


def _environments(leaf: Leaf) -> list[dict[str, str]]:
    found = (
        [leaf.metadata]
        if isinstance(leaf, flashinfer_v1.Content)
        else [environment.manifest for environment in leaf.environments.values()]
    )
    return [{name: canonical(value) for name, value in one.items()} for one in found]
