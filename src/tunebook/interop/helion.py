"""Helion's local cache, ``<hash>.best_config``: the configuration that one kernel is run with for one specialization.

``{"config": "<JSON>", "key": {"type", "fields": {…}}, "flat_config": "<JSON>", …}`` as
``helion/autotuner/local_cache.py`` writes it. It holds no times and not the kernel's name, only the hash of its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tunebook.errors import StoreError
from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss
from tunebook.interop._pieces import dump, member, own, words
from tunebook.interop._reading import head_members, parse_json, read_bytes, refuse, replace
from tunebook.store._text import one_line

SUFFIX: Final = ".best_config"
#: The fields of the key that name the problem; the others are the environment.
_PROBLEM: Final = ("specialization_key", "extra_results", "extra_cache_key")
_SOURCE: Final = "kernel_source_hash"
#: What such a file has on its top level.
_MEMBERS: Final = frozenset(
    {"config", "key", "flat_config", "backend_cache_key", "multi_shape_configs", "multi_shape_config_indices"}
)
#: So much of a hash tells kernels apart.
_DIGITS: Final = 16


class Helion:
    """One file is one problem, so two of them cannot become one."""

    name: Final = "helion"
    title: Final = "Helion's local cache (*.best_config)"
    fidelity: Fidelity = "bytes"
    lost: tuple[Loss, ...] = (
        Loss("white space and escapes of a file that Helion did not write itself"),
        Loss("the file's name, where another is given: Helion looks for the hash of the key"),
    )

    def detects(self, path: Path, head: bytes) -> bool:
        """By its key; by its name where it has no members that another format would know it by."""
        members = head_members(head) or {}
        if path.name.endswith(SUFFIX) and not members.keys() - _MEMBERS:
            return bool(head)
        key = members.get("key")
        return isinstance(members.get("config"), str) and isinstance(key, dict) and isinstance(key.get("fields"), dict)

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError`` for what Helion could not read."""
        value = parse_json(path, read_bytes(path))
        if not isinstance(value, dict):
            refuse(path, "it is no object with config and key")
        config = self._config(path, member(path, value, "config", str, ""))
        key = member(path, value, "key", dict, "")
        fields = member(path, key, "fields", dict, "key")
        source = member(path, fields, _SOURCE, str, "key fields")[:_DIGITS]
        named = {name: words(path, fields[name], f"key fields {name}") for name in fields}
        problem = "; ".join(f"{name}={named[name]}" for name in _PROBLEM if named.get(name, "") not in ("", "()"))
        facts = {name: text for name, text in named.items() if name not in _PROBLEM}
        if "type" in key:
            facts = {"cache": words(path, key["type"], "key type"), **facts}
        op = f"kernel {source}"
        entry = Entry(key=f"{op}|{problem}", op=op, problem=problem, choice=words(path, config, "config"))
        return ForeignBook(path=path, format=self.name, facts=facts, entries={entry.key: entry}, content=value)

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write it again. Helion looks for the name that it was read from."""
        replace(path, dump(own(book, self.name), indent=2))

    def _config(self, path: Path, text: str) -> dict[str, Any]:
        try:
            found = parse_json(path, text.encode("utf-8", "replace"))
        except StoreError as error:
            refuse(path, str(error).removeprefix(f"{one_line(path)}: "), "config")
        if not isinstance(found, dict):
            refuse(path, "it is no object", "config")
        return found


FORMAT: Format = Helion()
