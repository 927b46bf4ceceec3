"""What the arguments of a kernel say: which problem a call is, what it writes, and whether two runs wrote the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.dispatch import collector
from tunebook.errors import OpError
from tunebook.integrations.triton._call import is_tensor, plain
from tunebook.measure import compare
from tunebook.ops import Description, dtype_name
from tunebook.records import Problem


@dataclass(frozen=True)
class Arguments:
    """The arguments of the op `op`, by name and in order; those that its problem depends on, and those that it writes.

    A call's values come in the order of `names`; what follows them is no argument of the kernel.
    """

    op: str
    names: tuple[str, ...]
    keys: frozenset[str]
    writes: tuple[str, ...]

    def __post_init__(self) -> None:
        wrong = [name for name in self.writes if name not in self.names]
        if wrong:
            raise OpError(
                f"op {self.op}: output {wrong[0]!r} is no argument that a call gives ({', '.join(self.names)})"
            )
        if not self.writes:
            raise OpError(
                f"op {self.op}: nothing says what the kernel writes, so no configuration could be checked; name the "
                f'arguments: op(outputs=["{self.names[-1] if self.names else "out_ptr"}"])'
            )

    def tensors(self, values: Sequence[Any]) -> dict[str, Any]:
        return {name: value for name, value in zip(self.names, values, strict=False) if is_tensor(value)}

    def describe(self, values: Sequence[Any]) -> Description:
        """Triton's own key: the arguments that it names, and the dtypes of the tensors; also which arguments are None.

        Raises OpError for a call that is not tuned.
        """
        attrs: list[tuple[str, str]] = []
        dtypes: list[str] = []
        where = getattr(getattr(collector(), "device", None), "name", "")
        for name, value in zip(self.names, values, strict=False):
            if is_tensor(value):
                if name in self.keys:
                    raise OpError(f"op {self.op}: its key names {name}, which is a tensor; name numbers there")
                if where and where.partition(":")[0] != value.device.type:
                    raise OpError(f"op {self.op}: {name} is on {value.device}, and this block measures on {where}")
                dtype = dtype_name(value.dtype)
                if not dtypes or dtype != dtypes[0]:
                    dtypes.append(f"{name}:{dtype}" if dtypes else dtype)
            elif not plain(value):
                raise OpError(f"op {self.op}: argument {name} is a {type(value).__name__}, of which no copy is made")
            elif value is None or name in self.keys:
                attrs.append((name, str(value)))
        return Description(tuple(attrs), tuple(dtypes), {})

    def family(self, values: Sequence[Any]) -> str:
        """The problem's name but for how it is measured. Raises OpError for a call that is not tuned."""
        found = self.describe(values)
        return Problem(op=self.op, attrs=found.attrs, dtypes=found.dtypes).family

    def agree(self, got: Sequence[Any], expected: Sequence[Any], values: Sequence[Any]) -> float | str:
        """Compare what two runs wrote, output by output; what is wrong is told under the output's name."""
        tensors, worst = self.tensors(values), 0.0
        names = [name for name in self.writes if name in tensors]
        for name, one, other in zip(names, got, expected, strict=True):
            found = compare(one, other)
            if isinstance(found, str):
                return f"{name}: {found}"
            worst = max(worst, found)
        return worst
