"""The configurations of the fused mixture-of-experts kernel that vLLM and SGLang load: JSON whose name is part of it.

``E=128,N=384,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json`` holds, for some numbers of rows, the Triton
configuration that was fastest; the kernel takes the nearest. vLLM also keeps ``triton_version`` in the file; SGLang, which
cannot load a file with that, keeps it in the name of the directory (``triton_3_4_0``), adds ``per_channel_quant=True`` and
``_down`` to the file's, and has a space in it: ``block_shape=[128, 128]``. After vLLM 0.33 and SGLang 0.5.23.
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
    r"E=(?P<E>\d{1,9}),N=(?P<N>\d{1,9}),device_name=(?P<device>[^,]*?)"
    r"(?P<rest>(?:,[a-z_]+=(?:\[[0-9, ]*\]|[^,\[\]=]+?))*)(?P<down>_down)?\.json"
)
_PART = re.compile(r",([a-z_]+)=(\[[0-9, ]*\]|[^,\[\]=]+)")
_DIRECTORY = re.compile(r"triton_(\d+(?:_\d+)+)")
_ROWS = re.compile(r"[1-9]\d{0,17}")
_INDENT = re.compile(rb"\{\n( {1,8})\"")
#: So many line breaks at the end of a file are kept.
_MOST_LINES: Final = 8
#: Parts of the name that vLLM does not look for.
_SGLANG_ONLY: Final = ("per_channel_quant",)
#: And those that SGLang does not look for.
_VLLM_ONLY: Final = ("backend",)


@dataclass(frozen=True, kw_only=True)
class Content:
    """The file's name taken apart, the version of Triton where it is told, the configurations by number of rows, and what the
    file is laid out like: of those that the engines ship some are indented by two, and some end without a line break.
    """

    experts: int
    width: int
    device: str
    parts: dict[str, str]
    down: bool
    version: str
    configurations: dict[str, dict[str, Any]]
    indent: int = 4
    ending: str = "\n"

    def file_name(self, sglang: bool) -> str:
        """The name by which that engine looks for it; `parts` have no spaces in them."""
        between = ", " if sglang else ","
        parts = "".join(f",{name}={value.replace(',', between)}" for name, value in self.parts.items())
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
            return (
                *general,
                Loss(
                    "in a place that is no directory triton_…, where SGLang does not look: the version of Triton",
                    "vllm-moe",
                ),
                Loss("backend: such a file is refused, SGLang has no name for it", "vllm-moe"),
            )
        return (
            *general,
            Loss("per_channel_quant and _down: such a file is refused, vLLM has no name for it", "sglang-moe"),
        )

    @property
    def _unknown(self) -> tuple[str, ...]:
        return _VLLM_ONLY if self.sglang else _SGLANG_ONLY

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
                f"{book.path}: a book of {book.format} cannot become {self.name}: it has no number of experts"
            )
        content = book.content
        name = content.file_name(self.sglang)
        if (content.down and not self.sglang) or not content.parts.keys().isdisjoint(self._unknown):
            raise UsageError(
                f"{book.path}: {'SGLang' if self.sglang else 'vLLM'} looks for no file of that name: {name}"
            )
        if path.suffix != ".json":
            path = (self._directory(path, content.version) if self.sglang else path) / name
        elif path.name != name:
            raise UsageError(f"{path}: the engine looks for this by its name, {name}; name a directory, or that")
        replace(path, self._encoded(content))

    def _directory(self, path: Path, version: str) -> Path:
        """Where SGLang looks under `path`, which may be that directory itself."""
        wanted = f"triton_{version.replace('.', '_')}"
        if _DIRECTORY.fullmatch(path.name):
            if version and path.name != wanted:
                raise UsageError(f"{path}: it is of Triton {version}; name {path.with_name(wanted)}, or {path.parent}")
            return path
        return path / wanted if _DIRECTORY.fullmatch(wanted) else path

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        one, other = (book.content for book in (first, second))
        if not isinstance(one, Content) or not isinstance(other, Content):
            raise UsageError(f"{second.path}: a book of {second.format} is not merged with one of {self.name}")
        if one.file_name(self.sglang) != other.file_name(self.sglang) or one.version != other.version:
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
        return (json.dumps({**document, **content.configurations}, indent=content.indent) + content.ending).encode()


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
        parts={name: value.replace(" ", "") for name, value in _PART.findall(named["rest"])},
        down=named["down"] is not None,
        version=version,
        configurations=found,
        indent=len(indented[1]) if (indented := _INDENT.match(data)) else 4,
        ending="\n" * min(len(data) - len(data.rstrip(b"\n")), _MOST_LINES),
    )


def _is_sglang(path: Path, named: re.Match[str]) -> bool:
    marked = named["down"] is not None or any(f",{name}=" in named["rest"] for name in _SGLANG_ONLY)
    marked = marked or ", " in named["rest"]
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
