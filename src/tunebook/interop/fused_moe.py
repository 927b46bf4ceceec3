"""The configurations of the fused mixture-of-experts kernel that vLLM and SGLang load: JSON whose name is part of it.

``E=128,N=384,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json`` holds, for some numbers of rows, the Triton
configuration that was fastest; the kernel takes the nearest. vLLM also keeps ``triton_version`` in the file; SGLang, which
cannot load a file with that, keeps it in the name of the directory (``triton_3_4_0``), and adds ``per_channel_quant=True``
and ``_down`` to the file's. After vLLM 0.32 and SGLang's main branch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunebook.errors import UsageError
from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss
from tunebook.interop._reading import canonical, parse_json, read_bytes, refuse, replace

VERSION: Final = "triton_version"
_NAME = re.compile(
    r"E=(?P<E>\d{1,9}),N=(?P<N>\d{1,9}),device_name=(?P<device>[^,]+?)"
    r"(?P<rest>(?:,[a-z_]+=(?:\[[0-9, ]*\]|[^,\[\]=]+?))*)(?P<down>_down)?\.json"
)
_PART = re.compile(r",([a-z_]+)=(\[[0-9, ]*\]|[^,\[\]=]+)")
_DIRECTORY = re.compile(r"triton_(\d+(?:_\d+)+)")
_ROWS = re.compile(r"[1-9]\d{0,17}")
#: Parts of the name that vLLM does not look for.
_SGLANG_ONLY: Final = ("per_channel_quant",)


@dataclass(frozen=True, kw_only=True)
class Content:
    """The file's name taken apart, the version of Triton where it is told, the configurations by number of rows, and how
    the file ends: some of those that vLLM ships end without a line break.
    """

    experts: int
    width: int
    device: str
    parts: dict[str, str]
    down: bool
    version: str
    configurations: dict[str, dict[str, Any]]
    ending: str = "\n"

    @property
    def file_name(self) -> str:
        parts = "".join(f",{name}={value}" for name, value in self.parts.items())
        down = "_down" if self.down else ""
        return f"E={self.experts},N={self.width},device_name={self.device}{parts}{down}.json"


@dataclass(frozen=True)
class FusedMoE:
    """`Format` of these files: vLLM's, and SGLang's."""

    name: str
    title: str
    sglang: bool
    fidelity: Fidelity = "bytes"

    @property
    def lost(self) -> tuple[Loss, ...]:
        general = (Loss("white space of a file that the engine's tuning script did not write itself"),)
        if self.sglang:
            return (*general, Loss("in a place that is no directory triton_…: the version of Triton", "vllm-moe"))
        return (
            *general,
            Loss("per_channel_quant and _down: such a file is refused, vLLM has no name for it", "sglang-moe"),
        )

    def detects(self, path: Path, head: bytes) -> bool:
        named = _NAME.fullmatch(path.name)
        return named is not None and head.lstrip()[:1] == b"{" and _is_sglang(path, named) == self.sglang

    def read(self, path: Path) -> ForeignBook:
        content = parse(path, read_bytes(path))
        if self.sglang and (place := _DIRECTORY.fullmatch(_parent(path))):
            content = dataclasses.replace(content, version=content.version or place[1].replace("_", "."))
        return ForeignBook(
            path=path, format=self.name, facts=_facts(content), entries=_entries(content), content=content
        )

    def write(self, book: ForeignBook, path: Path) -> None:
        """`path` is a directory, or a file of the name that the engine looks for."""
        if not isinstance(book.content, Content):
            raise UsageError(
                f"{book.path}: a {book.format} book cannot become {self.name}: it has no number of experts"
            )
        content = book.content
        if not self.sglang and (content.down or any(name in content.parts for name in _SGLANG_ONLY)):
            raise UsageError(f"{book.path}: vLLM looks for no file of that name: {content.file_name}")
        if path.suffix != ".json":
            version = content.version.replace(".", "_")
            directory = (
                path / f"triton_{version}" if self.sglang and _DIRECTORY.fullmatch(f"triton_{version}") else path
            )
            path = directory / content.file_name
        elif path.name != content.file_name:
            raise UsageError(
                f"{path}: the engine looks for this by its name, {content.file_name}; name a directory, or that"
            )
        replace(path, self._encoded(content))

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        one, other = (book.content for book in (first, second))
        if not isinstance(one, Content) or not isinstance(other, Content):
            raise UsageError(f"{second.path}: a {second.format} book is not merged with one of {self.name}")
        if one.file_name != other.file_name or one.version != other.version:
            raise UsageError(
                f"{first.path} and {second.path} are of different kernels or versions of Triton; keep them apart"
            )
        rows = {**other.configurations, **one.configurations}
        ordered = {name: rows[name] for name in sorted(rows, key=int)}
        merged = dataclasses.replace(one, configurations=ordered)
        return ForeignBook(
            path=first.path, format=self.name, facts=_facts(merged), entries=_entries(merged), content=merged
        )

    def _encoded(self, content: Content) -> bytes:
        document: dict[str, Any] = {} if self.sglang or not content.version else {VERSION: content.version}
        return (json.dumps({**document, **content.configurations}, indent=4) + content.ending).encode()


VLLM: Format = FusedMoE(name="vllm-moe", title="vLLM's fused-MoE configurations", sglang=False)
SGLANG: Format = FusedMoE(name="sglang-moe", title="SGLang's fused-MoE configurations", sglang=True)


def parse(path: Path, data: bytes) -> Content:
    """The content of a file, its name included. Raises ``StoreError`` with the key where it is malformed."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        refuse(path, "its name does not say what it is for: E=…,N=…,device_name=….json")
    found = parse_json(path, data)
    if not isinstance(found, dict):
        refuse(path, "it is not an object")
    version = found.pop(VERSION, "")
    if not isinstance(version, str):
        refuse(path, "not a text", f"key {VERSION}")
    for rows, configuration in found.items():
        place = f"key {rows}"
        if not _ROWS.fullmatch(rows):
            refuse(path, "not a number of rows", place)
        if not isinstance(configuration, dict) or not configuration:
            refuse(path, "not a configuration: an object", place)
        for name, value in configuration.items():
            if isinstance(value, dict | list | None):
                refuse(path, f"{name} is not a plain value", place)
    return Content(
        experts=int(named["E"]),
        width=int(named["N"]),
        device=named["device"],
        parts=dict(_PART.findall(named["rest"])),
        down=named["down"] is not None,
        version=version,
        configurations=found,
        ending="\n" if data.endswith(b"\n") else "",
    )


def _is_sglang(path: Path, named: re.Match[str]) -> bool:
    marked = named["down"] is not None or any(f",{name}=" in named["rest"] for name in _SGLANG_ONLY)
    return marked or _DIRECTORY.fullmatch(_parent(path)) is not None


def _parent(path: Path) -> str:
    return path.absolute().parent.name


def _facts(content: Content) -> dict[str, str]:
    version = {VERSION: content.version} if content.version else {}
    return {"device": content.device, **version, **content.parts, **({"projection": "down"} if content.down else {})}


def _entries(content: Content) -> dict[str, Entry]:
    shape = f"E={content.experts},N={content.width}"
    made = (_entry(shape, rows, configuration) for rows, configuration in content.configurations.items())
    return {entry.key: entry for entry in made}


def _entry(shape: str, rows: str, configuration: Mapping[str, Any]) -> Entry:
    key = f"{shape},M={rows}"
    return Entry(key=key, op="fused_moe", problem=key.replace(",", " "), choice=canonical(configuration))
