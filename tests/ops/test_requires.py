"""Availability: the reason why a runner cannot be had, and never an exception where one is asked for."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.errors import OpError
from tunebook.ops import Requirement, _requires, as_requirement, requires

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_requires, "cpu_isa", lambda: ("sse4_2", "avx2"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch):
    """Stand in for PyTorch's CUDA: `set(None)` without a device, `set((8, 6))` with one."""

    def set_capability(capability: tuple[int, int] | None) -> None:
        fake = types.SimpleNamespace(
            is_available=lambda: capability is not None,
            get_device_capability=lambda: capability,
            get_device_name=lambda: "Test GPU",
        )
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=fake))

    return set_capability


def test_nothing_needed_is_available() -> None:
    assert requires().reason() is None


@pytest.mark.usefixtures("old_cpu")
def test_an_instruction_set_that_is_there_or_missing() -> None:
    assert requires(isa="avx2").reason() is None
    assert requires(isa=["SSE4.2", "AVX2"]).reason() is None
    assert requires(isa="avx512_bf16").reason() == "needs AVX-512 BF16 (avx512_bf16); this CPU has sse4_2, avx2"
    both = requires(isa=("avx512_bf16", "amx_tile")).reason()
    assert both is not None
    assert "avx512_bf16" in both
    assert "amx_tile" in both


def test_a_cpu_of_which_nothing_is_known(monkeypatch) -> None:
    monkeypatch.setattr(_requires, "cpu_isa", lambda: ())
    assert "none that is known" in str(requires(isa="neon").reason())


def test_an_unknown_instruction_set_names_the_known_ones() -> None:
    with pytest.raises(OpError, match=r"'avx9000'.*avx512_bf16"):
        requires(isa=["avx2", "avx9000"])


def test_no_cuda_device(cuda) -> None:
    cuda(None)
    assert requires(cuda=(9, 0)).reason() == "needs CUDA with compute capability ≥ 9.0; no CUDA device here"


@pytest.mark.parametrize(
    ("have", "need", "fits"), [((9, 0), (9, 0), True), ((10, 0), (9, 0), True), ((8, 9), (9, 0), False)]
)
def test_compute_capability_is_a_lower_bound(cuda, have, need, fits: bool) -> None:
    cuda(have)
    reason = requires(cuda=need).reason()
    assert (reason is None) == fits
    if reason:
        assert reason == "needs CUDA with compute capability ≥ 9.0; Test GPU has 8.9"


def test_without_pytorch(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert requires(cuda=(8, 0)).reason() == "needs CUDA with compute capability ≥ 8.0; PyTorch is not installed"


@pytest.mark.parametrize("value", ["9.0", (9,), 9, (9.0, 0), (-1, 0), (True, 0)])
def test_an_impossible_capability_is_an_error(value) -> None:
    with pytest.raises(OpError, match="compute capability"):
        requires(cuda=value)


def test_packages_are_looked_for_and_not_imported() -> None:
    assert requires(module=("json", "os.path")).reason() is None
    program = (
        "import sys; from tunebook.ops import requires\n"
        "assert requires(module='wave').reason() is None\n"
        "print('wave' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_a_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "flashinfer", raising=False)
    assert requires(module="flashinfer").reason() == "needs the package flashinfer; pip install flashinfer-python"


def test_a_missing_module_of_a_missing_package() -> None:
    reason = requires(module="no_such_package_here.ops").reason()
    assert reason == "needs the module no_such_package_here.ops; pip install no_such_package_here"


@pytest.mark.parametrize("value", ["not a name", "", "a..b", [3]])
def test_what_is_no_import_name_is_an_error(value) -> None:
    with pytest.raises(OpError, match="module"):
        requires(module=value)


def test_a_check_of_ones_own_runs_last_and_only_where_the_rest_holds() -> None:
    asked: list[int] = []

    def check() -> str | None:
        asked.append(1)
        return "no licence key"

    assert requires(module="json", check=check).reason() == "no licence key"
    assert len(asked) == 1
    assert "no_such_package" in str(requires(module="no_such_package_here", check=check).reason())
    assert len(asked) == 1
    with pytest.raises(OpError, match="check"):
        requires(check="yes")  # type: ignore[arg-type]


@pytest.mark.usefixtures("old_cpu")
def test_requirements_add_up() -> None:
    asked: list[str] = []
    first = requires(check=lambda: asked.append("check"))
    second = requires(isa="amx_tile")
    for both in (first & second, second & first):
        assert "amx_tile" in str(both.reason())
    assert asked == []
    assert (first & requires(isa="avx2")).reason() is None
    assert asked == ["check"]
    assert (second & second).reason() == second.reason()
    with pytest.raises(TypeError):
        first & 3  # type: ignore[operator]


def test_a_requirement_of_what_is_given() -> None:
    assert as_requirement(None).reason() is None
    assert as_requirement(True).reason() is None
    assert as_requirement(False).reason() == "declared unavailable"
    requirement = requires(isa="avx2")
    assert as_requirement(requirement) is requirement
    assert as_requirement(lambda: True).reason() is None
    assert as_requirement(lambda: None).reason() is None
    assert as_requirement(lambda: "no compiler").reason() == "no compiler"

    class Licence:
        def reason(self) -> str | None:
            return "no licence"

    assert as_requirement(Licence()).reason() == "no licence"
    assert (as_requirement(Licence()) & requires()).reason() == "no licence"
    with pytest.raises(OpError, match="available='yes'"):
        as_requirement("yes")


def test_a_check_that_says_only_no_is_named() -> None:
    def has_compiler() -> bool:
        return False

    assert as_requirement(has_compiler).reason() == "its check has_compiler() says no"


@pytest.mark.parametrize("answer", [3, b"no", [], 0, " \n"])
def test_an_answer_of_another_kind_is_unavailable(answer) -> None:
    reason = as_requirement(lambda: answer).reason()
    assert reason is not None
    assert type(answer).__name__ in reason


def test_a_check_that_raises_is_a_reason_in_one_line() -> None:
    def broken() -> bool:
        raise RuntimeError("the driver\n  is gone")

    assert as_requirement(broken).reason() == "availability check failed: RuntimeError: the driver is gone"
    assert requires(check=broken).reason() == as_requirement(broken).reason()  # type: ignore[arg-type]


def test_a_warning_of_a_check_is_no_failure() -> None:
    def warns() -> bool:
        warnings.warn("the driver is old", UserWarning, stacklevel=1)
        return True

    assert as_requirement(warns).reason() is None


@given(st.one_of(st.none(), st.booleans(), st.text(), st.integers(), st.lists(st.integers())))
def test_whatever_a_check_answers_there_is_a_reason_or_none(answer) -> None:
    reason = as_requirement(lambda: answer).reason()
    assert (reason is None) == (answer is None or answer is True)
    assert reason is None or reason.strip()


def test_a_requirement_made_by_hand() -> None:
    assert Requirement(facts=(lambda: "one", lambda: "two", lambda: "one")).reason() == "one; two"
