"""Facts of the CPU: the parsers on texts of real machines, and the real machine itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.devices import _isa, cache_sizes, cpu_isa, cpu_model, usable_cores

ZEN4 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model\t\t: 17
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma avx512f avx512bw avx512_bf16 avx512_vnni svm
bugs\t\t: sysret_ss_attrs

processor\t: 1
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma avx512f avx512bw avx512_bf16 avx512_vnni svm
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd aes atomics fphp asimdhp asimddp sve bf16 i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd40

processor\t: 1
Features\t: fp asimd aes atomics fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
RASPBERRY = "processor\t: 0\nFeatures\t: half thumb neon vfpv4\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4\n"
MAC_ARM = """\
hw.ncpu: 8
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 0
hw.l1dcachesize: 65536
hw.l2cachesize: 4194304
hw.perflevel0.l1dcachesize: 131072
machdep.cpu.brand_string: Apple M1
"""
MAC_INTEL = """\
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
hw.l1dcachesize: 32768
hw.l2cachesize: 262144
hw.l3cachesize: 12582912
machdep.cpu.features: FPU SSE4.2 FMA AVX1.0
machdep.cpu.leaf7_features: AVX2 BMI2
machdep.cpu.brand_string: Intel(R) Core(TM) i7-8700B CPU @ 3.20GHz
"""


def test_instruction_sets_of_x86() -> None:
    expected = ("sse4_2", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16")
    assert _isa.parse_cpuinfo_isa(ZEN4) == expected
    assert _isa.parse_cpuinfo_model(ZEN4) == "AMD EPYC 9R14"


def test_instruction_sets_of_arm_are_those_of_every_core() -> None:
    assert _isa.parse_cpuinfo_isa(GRAVITON) == ("neon", "asimddp")
    assert _isa.parse_cpuinfo_isa(GRAVITON.partition("\n\n")[0]) == ("neon", "asimddp", "bf16", "sve")
    assert _isa.parse_cpuinfo_model(GRAVITON) == "ARM implementer 0x41 part 0xd40"
    assert _isa.parse_cpuinfo_isa(RASPBERRY) == ("neon",)
    assert _isa.parse_cpuinfo_model(RASPBERRY) == "Raspberry Pi 4"


def test_macos() -> None:
    assert _isa.parse_sysctl_isa(MAC_ARM) == ("neon", "asimddp")
    assert _isa.parse_sysctl_model(MAC_ARM) == "Apple M1"
    assert _isa.parse_sysctl_caches(MAC_ARM) == {"l1d": 131072, "l2": 4194304}
    assert _isa.parse_sysctl_isa(MAC_INTEL) == ("sse4_2", "avx2", "fma")
    assert _isa.parse_sysctl_caches(MAC_INTEL) == {"l1d": 32768, "l2": 262144, "l3": 12582912}


def test_an_empty_text_tells_nothing() -> None:
    assert _isa.parse_cpuinfo_isa("") == _isa.parse_sysctl_isa("") == ()
    assert _isa.parse_cpuinfo_model("") == _isa.parse_sysctl_model("") == "unknown"
    assert _isa.parse_sysctl_caches("") == _isa.parse_getconf_caches("") == {}
    assert _isa.cgroup_quota("") is None


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (_isa.parse_cpuinfo_isa, _isa.parse_sysctl_isa):
        assert set(parse(text)) <= set(_isa.KNOWN_ISA)
    for tell in (_isa.parse_cpuinfo_model, _isa.parse_sysctl_model):
        assert tell(text).strip()
    for sizes in (_isa.parse_sysctl_caches(text), _isa.parse_getconf_caches(text)):
        assert all(size > 0 for size in sizes.values())


@given(st.sets(st.sampled_from(sorted(_isa.KNOWN_ISA))))
def test_every_known_name_is_read_back_in_the_fixed_order(names: set[str]) -> None:
    found = _isa.parse_cpuinfo_isa(f"flags\t: fpu {' '.join(names)} lm\n")
    assert found == tuple(name for name in _isa.KNOWN_ISA if name in names)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("48K\n", 49152),
        ("2M", 2 << 20),
        ("1G", 1 << 30),
        ("512", 512),
        ("", None),
        ("K", None),
        ("-1K", None),
        ("4T", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert _isa.parse_size(text) == size


def test_caches_as_the_kernel_lists_them(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "480M")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert cache_sizes(tmp_path) == {"l1d": 48 << 10, "l2": 2 << 20, "l3": 480 << 20}


def test_caches_as_getconf_lists_them() -> None:
    text = (
        "LEVEL1_ICACHE_SIZE                 65536\nLEVEL1_DCACHE_SIZE                 49152\n"
        "LEVEL2_CACHE_SIZE                  2097152\nLEVEL3_CACHE_SIZE                  0\nLEVEL4_CACHE_SIZE\n"
    )
    assert _isa.parse_getconf_caches(text) == {"l1d": 49152, "l2": 2097152}


def test_getconf_serves_where_the_kernel_lists_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(_isa, "_run", lambda *command: "LEVEL2_CACHE_SIZE 1024\n" if command[0] == "getconf" else "")
    assert cache_sizes(tmp_path) == {"l2": 1024}


def test_a_program_that_is_missing_tells_nothing() -> None:
    assert _isa._run("no-such-program-here") == ""


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_quota_of_version_2_is_the_least_on_the_way_up(tmp_path: Path) -> None:
    group(tmp_path, "a/b/c", cpu__max="max 100000")
    group(tmp_path, "a/b", cpu__max="150000 100000")
    group(tmp_path, "a", cpu__max="400000 100000")
    group(tmp_path, "other", cpu__max="10000 100000")
    assert _isa.cgroup_quota("0::/a/b/c\n", tmp_path) == 1.5
    assert _isa.cgroup_quota("0::/a\n", tmp_path) == 4.0
    assert _isa.cgroup_quota("0::/\n", tmp_path) is None


def test_in_a_container_the_root_speaks(tmp_path: Path) -> None:
    group(tmp_path, "", cpu__max="300000 100000")
    assert _isa.cgroup_quota("0::/not/visible/here\n", tmp_path) == 3.0


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_the_quota_of_version_1(tmp_path: Path, controllers: str) -> None:
    group(tmp_path, f"{controllers}/job", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    group(tmp_path, controllers, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    own = f"5:memory:/job\n4:cpuset:/job\n3:{controllers}:/job\n"
    assert _isa.cgroup_quota(own, tmp_path) == 2.5
    assert _isa.cgroup_quota(f"3:{controllers}:/\n", tmp_path) is None


@given(st.text())
def test_no_group_text_breaks_the_quota(text: str) -> None:
    assert _isa.cgroup_quota(text, Path("/no/such/folder")) is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.0, 1), (3.9, 3), (64.0, 8)])
def test_usable_cores_are_what_affinity_and_quota_leave(monkeypatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(_isa, "cgroup_quota", lambda own: quota)
    assert usable_cores() == cores


def test_this_machine() -> None:
    assert set(cpu_isa()) <= set(_isa.KNOWN_ISA)
    assert cpu_model()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert set(cache_sizes()) <= {"l1d", "l2", "l3"}
