"""The hot path: for each binding a function whose source is made for its arguments, so that a call costs one look-up.

A call looks its shapes up in the binding's `fast` table, then compares what else a tactic was tuned for: each tensor's
dtype, device and contiguity, no gradient, no autocast. Whatever does not fit goes the slow way, which looks at everything.
Loops over arguments would cost more than the guards themselves, so the code is written out, as `dataclasses` does it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunebook.dispatch._binding import Binding

Call = Callable[..., Any]


@dataclass(eq=False, slots=True)
class Table:
    """What was resolved. `full` by everything that matters; `fast`, by shapes alone, one entry of `full` with its guards."""

    full: dict[Any, Call] = field(default_factory=dict)
    fast: dict[Any, tuple[Any, ...]] = field(default_factory=dict)

    def clear(self) -> None:
        self.full.clear()
        self.fast.clear()


def signature(args: tuple[Any, ...], lead: int | None) -> Any:
    """Everything that the choice depends on. Raises AttributeError for a leading argument that is no tensor."""
    if lead is None:
        return tuple(_of_tensor(value) if hasattr(value, "is_contiguous") else (type(value), value) for value in args)
    others = [(getattr(v, "dtype", None), getattr(v, "device", None), _plain(v)) for v in args if v is not args[lead]]
    return (_of_tensor(args[lead]), *others)


def _of_tensor(value: Any) -> tuple[Any, ...]:
    return (value.shape, value.dtype, _plain(value) or value.stride(), value.device)


def _plain(value: Any) -> bool:
    return not hasattr(value, "is_contiguous") or bool(value.is_contiguous())


def fast_entry(args: tuple[Any, ...], lead: int | None, call: Call) -> tuple[Any, tuple[Any, ...]] | None:
    """The key and the guards under which `call` may be found the fast way, or None for arguments out of the ordinary."""
    import torch

    for value in args:
        if isinstance(value, torch.Tensor) and not (type(value) is torch.Tensor and _here(value) and _plain(value)):
            return None
    if lead is not None:
        if not isinstance(args[lead], torch.Tensor):
            return None
        guards = [getattr(value, "dtype", None) for value in args]
        return args[lead].shape, (call, *guards, *_devices(args))
    key = tuple(value.shape if type(value) is torch.Tensor else value for value in args)
    guards = [part for value in args for part in (type(value), getattr(value, "dtype", None))]
    return key, (call, *guards, *_devices(args))


def _here(value: Any) -> bool:
    return bool(value.is_cpu) or _accelerated()


def _accelerated() -> bool:
    import torch

    return torch.cuda.is_available()


def _devices(args: Sequence[Any]) -> list[Any]:
    """Guards of their own where there is more than the CPU: comparing devices costs more than asking for the CPU."""
    return [getattr(value, "device", None) for value in args] if _accelerated() else []


def make_caller(binding: Binding, parameters: Sequence[inspect.Parameter]) -> Call:
    """A function of `parameters`, the op's dynamic arguments, that serves `binding`."""
    import torch

    mark = _mark(parameters)
    known = {
        "binding": binding,
        "slow": _slow(binding),
        "Tensor": torch.Tensor,
        "grad": torch.is_grad_enabled,
        "autocast": torch._C._is_any_autocast_enabled,
    }
    return _made(_source(parameters, binding.lead, mark), binding.spec.name, parameters, mark, known)


#: The attribute of a tensor under which its bindings are kept, and with them each op's latest caller.
HELD = "_tunebook_bindings"


def make_constants_caller(op: str, parameters: Sequence[inspect.Parameter], dynamic: int, slow: Call) -> Call:
    """A function of all `parameters` that serves the latest constants of each first constant while they are what they were.

    What it compares is kept on the first constant, under the op's name: `constants_entry` makes it. All else is `slow`.
    """
    mark = _mark(parameters)
    names = [parameter.name for parameter in parameters]
    constants = names[dynamic:]
    found = [f"{mark}c_{name}" for name in constants]
    places = [part for name in constants for part in (f"{mark}p_{name}", f"{mark}v_{name}")]
    same = [
        f"{mark}c_{name} == id({name})" if name == constants[0] else f"{mark}c_{name} is {name}" for name in constants
    ]
    still = [
        f"({mark}p_{name} is None or ({name}.data_ptr() == {mark}p_{name}"
        f" and ({mark}v_{name} is None or {name}._version == {mark}v_{name})))"
        for name in constants
    ]
    source = f"""
def {mark}call({_parameters(parameters, mark)}):
    try:
        {", ".join([f"{mark}found", *found, *places])} = {constants[0]}.{HELD}[{mark}op]
    except (AttributeError, KeyError):
        return {mark}slow({", ".join(names)})
    if {" and ".join([*same, *still])}:
        return {mark}found({", ".join(names[:dynamic])})
    return {mark}slow({", ".join(names)})
"""
    return _made(source, op, parameters, mark, {"op": op, "slow": slow})


def constants_entry(call: Call, constants: Sequence[Any]) -> tuple[Any, ...]:
    """What `make_constants_caller` compares: identities, and of tensors the place and the version where there is one."""
    return (call, id(constants[0]), *constants[1:], *(part for value in constants for part in place(value)))


def place(value: Any) -> tuple[int | None, int | None]:
    """Where a tensor lies, and the counter that moves when it is written in place (None for an inference tensor)."""
    if not hasattr(value, "untyped_storage"):
        return None, None
    return value.data_ptr(), None if value.is_inference() else value._version


def _mark(parameters: Sequence[inspect.Parameter]) -> str:
    """What no parameter's name begins with: names of our own begin so."""
    mark = "_"
    while any(parameter.name.startswith(mark) for parameter in parameters):
        mark += "_"
    return mark


def _made(source: str, op: str, parameters: Sequence[inspect.Parameter], mark: str, known: dict[str, Any]) -> Call:
    space = {f"{mark}{name}": value for name, value in known.items()}
    space |= {f"{mark}default_{i}": p.default for i, p in enumerate(parameters) if p.default is not p.empty}
    exec(_compiled(source, f"<dispatch of {op}>"), space)  # noqa: S102 - the text is ours, names are identifiers
    call: Call = space[f"{mark}call"]
    return call


@functools.lru_cache(maxsize=256)
def _compiled(source: str, name: str) -> types.CodeType:
    """Bindings of one op have one source; compiling takes longer than all else in making one."""
    return compile(source, name, "exec")


def _source(parameters: Sequence[inspect.Parameter], lead: int | None, mark: str) -> str:
    accelerated = _accelerated()
    names = [parameter.name for parameter in parameters]
    args = "".join(f"{name}, " for name in names)
    fields = [f"{mark}found"]

    def tensor(name: str) -> str:
        where = f"{name}.device == {mark}at_{name}" if accelerated else f"{name}.is_cpu"
        return f"{name}.dtype is {mark}d_{name} and {name}.is_contiguous() and {where}"

    if lead is not None:
        key = f"{names[lead]}.shape"
        fields += [f"{mark}d_{name}" for name in names]
        guards = [
            f"type({name}) is {mark}Tensor and {tensor(name)}"
            if position == lead
            else f"({tensor(name)} if type({name}) is {mark}Tensor else {mark}d_{name} is None)"
            for position, name in enumerate(names)
        ]
    else:
        key = "".join(f"{name}.shape if type({name}) is {mark}Tensor else {name}, " for name in names)
        fields += [part for name in names for part in (f"{mark}t_{name}", f"{mark}d_{name}")]
        guards = [
            f"type({name}) is {mark}t_{name} and ({mark}t_{name} is not {mark}Tensor or {tensor(name)})"
            for name in names
        ]
    if accelerated:
        fields += [f"{mark}at_{name}" for name in names]
    wants = " or ".join(
        [*(f"getattr({name}, 'requires_grad', False)" for name in names), f"{mark}binding.wants_grad()"]
    )
    return f"""
def {mark}call({_parameters(parameters, mark)}):
    try:
        {", ".join(fields)} = {mark}binding.fast[{key}]
    except (KeyError, AttributeError, TypeError):
        return {mark}slow(({args}))
    if {" and ".join(guards)} and not {mark}autocast() and not ({mark}grad() and ({wants})):
        return {mark}found({args})
    return {mark}slow(({args}))
"""


def _parameters(parameters: Sequence[inspect.Parameter], mark: str) -> str:
    parts = []
    positional = [i for i, parameter in enumerate(parameters) if parameter.kind is parameter.POSITIONAL_ONLY]
    for i, parameter in enumerate(parameters):
        parts.append(parameter.name + ("" if parameter.default is parameter.empty else f"={mark}default_{i}"))
        if positional and i == positional[-1]:
            parts.append("/")
    return ", ".join(parts)


def _slow(binding: Binding) -> Call:
    """Serves a call by its whole signature; what was never met is resolved."""
    import torch

    grad_enabled, autocast = torch.is_grad_enabled, torch._C._is_any_autocast_enabled

    def slow(args: tuple[Any, ...]) -> Any:
        try:
            found = binding.table.full.get(signature(args, binding.lead))
        except (AttributeError, TypeError):  # no tensor leads, or an argument cannot be hashed
            found = None
        if found is None or autocast() or (grad_enabled() and binding.asks_grad(args)):
            found = binding.resolve(args)
        return found(*args)

    return slow
