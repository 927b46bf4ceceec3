"""Availability: what a runner needs of the machine, and the reason why it cannot have it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tunebook.devices._isa import KNOWN_ISA, cpu_isa
from tunebook.errors import OpError

Check = Callable[[], str | None]

#: What `pip install` calls a package where that is not its import name.
_DISTRIBUTIONS = {"flashinfer": "flashinfer-python", "flash_attn": "flash-attn", "sgl_kernel": "sgl-kernel"}


@dataclass(frozen=True)
class Requirement:
    """What has to hold for a runner to be offered; ``a & b`` needs both.

    `facts` are asked all, so that everything missing is named at once; `checks` only where the facts hold, as their
    code may rely on them.
    """

    facts: tuple[Check, ...] = ()
    checks: tuple[Check, ...] = ()

    def reason(self) -> str | None:
        """None where the runner is available; otherwise one sentence that says what is missing. Never raises."""
        missing = [text for fact in self.facts if (text := _ask(fact))]
        if missing:
            return "; ".join(dict.fromkeys(missing))
        return next((text for check in self.checks if (text := _ask(check))), None)

    def __and__(self, other: Requirement) -> Requirement:
        if not isinstance(other, Requirement):
            return NotImplemented
        return Requirement(facts=self.facts + other.facts, checks=self.checks + other.checks)


def requires(
    *,
    isa: str | Sequence[str] = (),
    cuda: tuple[int, int] | None = None,
    module: str | Sequence[str] = (),
    check: Check | None = None,
) -> Requirement:
    """A requirement of CPU instruction sets, a CUDA compute capability (at least), packages, or a check of one's own.

    `isa` names instruction sets as Linux does, such as ``avx512_bf16``; `cuda` is (major, minor) of the current
    device; `module` is an import name, which is looked for but not imported; `check` returns None, or the reason.
    Nothing is asked before `reason()` is. Raises OpError for an unknown instruction set or an impossible argument.
    """
    facts: list[Check] = []
    for name in _names("isa", isa):
        normal = name.lower().replace("-", "_").replace(".", "_")
        if normal not in KNOWN_ISA:
            raise OpError(f"requires: unknown instruction set {name!r}; known are {', '.join(KNOWN_ISA)}")
        facts.append(partial(_missing_isa, normal))
    if cuda is not None:
        if not (isinstance(cuda, tuple) and len(cuda) == 2 and all(type(part) is int and part >= 0 for part in cuda)):
            raise OpError(f"requires: cuda={cuda!r} is no compute capability; give (major, minor), such as (9, 0)")
        facts.append(partial(_missing_cuda, cuda))
    for name in _names("module", module):
        if not all(part.isidentifier() for part in name.split(".")):
            raise OpError(f"requires: module={name!r} is no import name; give it as in an import statement")
        facts.append(partial(_missing_module, name))
    if check is not None and not callable(check):
        raise OpError(f"requires: check={check!r} cannot be called; give a function that returns None or a reason")
    return Requirement(facts=tuple(facts), checks=() if check is None else (check,))


def as_requirement(obj: object) -> Requirement:
    """What a runner's `available=` may be, as a requirement.

    None (always available), a requirement, anything with a method ``reason() -> str | None``, a bool, or a function
    that returns a bool, None (available) or a reason. A function that raises makes the runner unavailable.
    Raises OpError for anything else.
    """
    if obj is None or obj is True:
        return Requirement()
    if isinstance(obj, Requirement):
        return obj
    if obj is False:
        return Requirement(checks=(lambda: "declared unavailable",))
    reason = getattr(obj, "reason", None)
    if callable(reason):
        return Requirement(checks=(reason,))
    if callable(obj):
        return Requirement(checks=(obj,))
    raise OpError(
        f"available={obj!r} is no availability: give tunebook.requires(…), a function that returns a bool or a reason, "
        "or None"
    )


def _ask(check: Callable[[], Any]) -> str | None:
    try:
        with warnings.catch_warnings():  # a driver that is too old is a reason, not a warning
            warnings.simplefilter("ignore")
            answer = check()
    except Exception as error:  # noqa: BLE001 (whatever a user's check raises is a reason)
        text = " ".join(str(error).split())
        return f"availability check failed: {type(error).__name__}{': ' if text else ''}{text}"
    if answer is None or answer is True:
        return None
    if isinstance(answer, str) and answer.strip():
        return answer
    name = getattr(check, "__name__", type(check).__name__)
    if answer is False or answer == "":
        return f"its check {name}() says no"
    return f"availability check failed: {name}() returned {type(answer).__name__}, not a bool, a reason or None"


def _names(argument: str, value: str | Sequence[str]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise OpError(f"requires: {argument} holds {name!r}; give a name, or a sequence of names")
    return names


def _missing_isa(name: str) -> str | None:
    present = cpu_isa()
    if name in present:
        return None
    label = KNOWN_ISA[name]
    shown = name if label == name else f"{label} ({name})"
    return f"needs {shown}; this CPU has {', '.join(present) or 'none that is known'}"


def _missing_cuda(needed: tuple[int, int]) -> str | None:
    text = f"needs CUDA with compute capability ≥ {needed[0]}.{needed[1]}"
    try:
        import torch
    except ImportError:
        return f"{text}; PyTorch is not installed"
    if not torch.cuda.is_available():
        return f"{text}; no CUDA device here"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) >= needed:
        return None
    return f"{text}; {torch.cuda.get_device_name()} has {major}.{minor}"


def _missing_module(name: str) -> str | None:
    top = name.partition(".")[0]
    if name in sys.modules:
        found = sys.modules[name] is not None
    else:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ModuleNotFoundError, ValueError):  # its parent is missing; or a module made by hand, without a spec
            found = False
    if found:
        return None
    missing = "package" if name == top else "module"
    return f"needs the {missing} {name}; pip install {_DISTRIBUTIONS.get(top, top)}"
