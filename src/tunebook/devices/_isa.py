"""What this CPU is: instruction sets, model, cache sizes, and how many of its cores we may use."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

#: Instruction sets by the name that Linux gives them, in the order in which they came; with the maker's own name.
KNOWN_ISA: dict[str, str] = {
    "sse4_2": "SSE4.2",
    "avx2": "AVX2",
    "fma": "FMA3",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512 F",
    "avx512bw": "AVX-512 BW",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "neon": "NEON",
    "asimddp": "NEON dot product",
    "bf16": "ARM BF16",
    "sve": "SVE",
}

#: Other spellings: ARM Linux, then the keys of macOS's sysctl.
_SPELLINGS = {
    "asimd": "neon",
    "advsimd": "neon",
    "sse4.2": "sse4_2",
    "avx2_0": "avx2",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "feat_dotprod": "asimddp",
    "feat_bf16": "bf16",
}
_MODEL_KEYS = ("model name", "Model", "Hardware", "cpu model", "cpu")
_SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


@functools.cache
def cpu_isa() -> tuple[str, ...]:
    """The instruction sets that every core here has, of those in `KNOWN_ISA` and in its order; empty if unknown."""
    if sys.platform == "darwin":
        return parse_sysctl_isa(_sysctl())
    return parse_cpuinfo_isa(_read(Path("/proc/cpuinfo")))


@functools.cache
def cpu_model() -> str:
    """The name of the CPU, or ``unknown``."""
    if sys.platform == "darwin":
        return parse_sysctl_model(_sysctl())
    return parse_cpuinfo_model(_read(Path("/proc/cpuinfo")))


def cache_sizes(root: Path = _SYSFS) -> dict[str, int]:
    """``l1d``, ``l2`` and ``l3`` of the first core in bytes; what cannot be told, or is not there, is left out."""
    if sys.platform == "darwin":
        return parse_sysctl_caches(_sysctl())
    return read_sysfs_caches(root) or parse_getconf_caches(_run("getconf", "-a"))


def usable_cores() -> int:
    """How many cores this process may use: its affinity and its control group's quota, rounded down; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    quota = cgroup_quota(_read(Path("/proc/self/cgroup")))
    return max(1, cores if quota is None else min(cores, int(quota)))


def parse_cpuinfo_isa(text: str) -> tuple[str, ...]:
    """The instruction sets in the text of ``/proc/cpuinfo`` that all of its cores have."""
    lines = re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE)
    return _known(set.intersection(*(_normal(line.split()) for line in lines))) if lines else ()


def parse_cpuinfo_model(text: str) -> str:
    """The model in the text of ``/proc/cpuinfo``. ARM gives numbers there: ``ARM implementer 0x41 part 0xd40``."""
    fields = dict(reversed(re.findall(r"^([^:\n]*?)[ \t]*:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)))
    for key in _MODEL_KEYS:
        if fields.get(key):
            return " ".join(fields[key].split())
    if "CPU implementer" in fields:
        return f"ARM implementer {fields['CPU implementer']} part {fields.get('CPU part', 'unknown')}"
    return "unknown"


def parse_sysctl_isa(text: str) -> tuple[str, ...]:
    """The instruction sets in what macOS's ``sysctl`` prints of ``hw.optional`` and ``machdep.cpu``."""
    names: list[str] = []
    for key, value in _sysctl_fields(text).items():
        if key.startswith("machdep.cpu.") and key.endswith("features"):
            names += value.split()
        elif key.startswith("hw.optional.") and value == "1":
            names.append(key.rpartition(".")[2])
    return _known(_normal(names))


def parse_sysctl_model(text: str) -> str:
    """The model in what macOS's ``sysctl`` prints."""
    return _sysctl_fields(text).get("machdep.cpu.brand_string") or "unknown"


def parse_sysctl_caches(text: str) -> dict[str, int]:
    """The cache sizes in what macOS's ``sysctl`` prints, of the fast cores where it tells them apart."""
    fields = _sysctl_fields(text)
    sizes: dict[str, int] = {}
    for name, key in (("l1d", "l1dcachesize"), ("l2", "l2cachesize"), ("l3", "l3cachesize")):
        value = fields.get(f"hw.perflevel0.{key}") or fields.get(f"hw.{key}") or ""
        if value.isascii() and value.isdecimal() and int(value):
            sizes[name] = int(value)
    return sizes


def parse_size(text: str) -> int | None:
    """``48K`` is 49152, as the kernel writes sizes; None for anything else."""
    found = re.fullmatch(r"([0-9]+)([KMG]?)", text.strip())
    return int(found[1]) * _UNITS[found[2]] if found else None


def read_sysfs_caches(root: Path) -> dict[str, int]:
    """The cache sizes under ``/sys/devices/system/cpu/cpu0/cache``."""
    sizes: dict[str, int] = {}
    for index in sorted(root.glob("index*")):
        level, kind = _read(index / "level").strip(), _read(index / "type").strip()
        name = {"1": "l1d", "2": "l2", "3": "l3"}.get(level)
        size = parse_size(_read(index / "size"))
        if name and size and kind in ("Data", "Unified"):
            sizes[name] = size
    return sizes


def parse_getconf_caches(text: str) -> dict[str, int]:
    """The cache sizes in what ``getconf -a`` prints."""
    found = dict(re.findall(r"^(LEVEL(?:1_D|2_|3_)CACHE_SIZE)[ \t]+([0-9]+)[ \t]*$", text, re.MULTILINE))
    keys = {"l1d": "LEVEL1_DCACHE_SIZE", "l2": "LEVEL2_CACHE_SIZE", "l3": "LEVEL3_CACHE_SIZE"}
    return {name: int(found[key]) for name, key in keys.items() if int(found.get(key, 0))}


def cgroup_quota(own: str, root: Path = _CGROUP) -> float | None:
    """The cores' worth of time that this process's control group and those around it grant; None without a limit.

    `own` is the text of ``/proc/self/cgroup``. In a container its paths may not be visible: then the root speaks.
    """
    quotas: list[float] = []
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base = next((folder for name in ("cpu", controllers) if (folder := root / name).is_dir()), root)
            read = _quota_v1
        else:
            continue
        group = base / path.strip().lstrip("/")
        for folder in (group, *group.parents):
            if folder != base and base not in folder.parents:
                break
            if (quota := read(folder)) is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _quota_v2(group: Path) -> float | None:
    return _quota(*(_read(group / "cpu.max").split() or ("max",)))


def _quota_v1(group: Path) -> float | None:
    return _quota(_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip())


def _quota(allowed: str, period: str = "100000", *_: str) -> float | None:
    """Microseconds per microseconds; ``max`` and -1 are no limit."""
    if not (re.fullmatch("[0-9]+", allowed) and re.fullmatch("[0-9]+", period)) or not int(period):
        return None
    return int(allowed) / int(period)


def _normal(names: Iterable[str]) -> set[str]:
    lower = (name.lower() for name in names)
    return {_SPELLINGS.get(name, name) for name in lower}


def _known(names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in KNOWN_ISA if name in names)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def _sysctl() -> str:
    return _run("sysctl", "hw", "machdep.cpu")


def _sysctl_fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
