"""The counting of one binding's calls: what it resolves counts itself, so that a call looks nothing up for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tunebook.dispatch._caller import Call, signature
from tunebook.dispatch._counting import COUNTING, Place, Tally
from tunebook.records import Problem, Tactic

if TYPE_CHECKING:
    from tunebook.dispatch._scope import Scope

#: A call whose number is a multiple of this asks whether it is time to write.
LOOK: Final = 256
#: So many signatures of calls that no tactic may serve are remembered; then they are found out anew.
_MAX_KEPT: Final = 1 << 12


class Coverage:
    """Counts the calls of one binding. `lead` is the position of the argument that tells all; None: each counts."""

    def __init__(
        self, scope: Scope, lead: int | None, problem_of: Callable[[tuple[Any, ...]], Problem | None], *, steps: bool
    ) -> None:
        """`problem_of` gives a call's problem, None for a call that has none; `steps`: the arguments are a model's."""
        self._scope, self._lead, self._problem_of, self._steps = scope, lead, problem_of, steps
        self._unfit: dict[Any, Tally] = {}

    @staticmethod
    def wanted() -> bool:
        """Whether calls are counted: a binding asks when it is made."""
        return COUNTING.wanted()

    def counted(self, args: tuple[Any, ...], call: Call, tactic: Tactic | None, lent: bool) -> Call:
        """`call`, which counts itself: `tactic` serves, of another bucket if it is `lent`, or the default untuned (None)."""
        return _counting(self._tally(args, tactic, lent), call, len(args))

    def unfit(self, args: tuple[Any, ...], call: Call) -> Call:
        """`call`, the default, of a call that no tactic may serve as it is made; it counts itself."""
        try:
            key = signature(args, self._lead)
            tally = self._unfit.get(key)
            if tally is None:
                if len(self._unfit) >= _MAX_KEPT:
                    self._unfit.clear()
                tally = self._unfit[key] = self._tally(args, None, lent=False)
        except (AttributeError, TypeError):  # no tensor, or nothing that can be hashed
            tally = self._tally(args, None, lent=False)
        return _counting(tally, call, len(args))

    def _tally(self, args: tuple[Any, ...], tactic: Tactic | None, lent: bool) -> Tally:
        problem = self._problem_of(args)
        if problem is None:
            return COUNTING.tally(None, None)
        outcome = (
            "bucket" if lent else "default" if tactic is None else COUNTING.outcome(self._scope.name, problem, tactic)
        )
        step = _step_of(args[self._lead or 0]) if self._steps else None
        return COUNTING.tally(Place(self._scope.name, problem.key, outcome), step)


def _counting(tally: Tally, call: Call, arguments: int) -> Call:
    """`call`, of so many arguments, which counts itself; the commonest form avoids unpacking."""
    add, tick = tally.add, COUNTING.tick
    if arguments == 1:

        def counted(x: Any) -> Any:
            if not add() % LOOK:
                tick()
            return call(x)

        return counted

    def counted_all(*args: Any) -> Any:
        if not add() % LOOK:
            tick()
        return call(*args)

    return counted_all


def _step_of(value: Any) -> tuple[int, int] | None:
    """The sequences, and the tokens of each, of activations [B, T, …] or [B, heads, T, …]; None for others."""
    shape: tuple[int, ...] = tuple(getattr(value, "shape", ()))
    return (shape[0], shape[-2]) if len(shape) in (3, 4) else None
