"""The difference between two runs, or a run and a cache: what changed, whether it is real, and what it is worth."""

from __future__ import annotations

from tunebook.book._change import Change, change_of, with_rates
from tunebook.book._offers import Field, Turn, fields_of, turns_of
from tunebook.book._phases import PhaseChange, phase_changes
from tunebook.book._restarts import Between, Spread, measured, spread_between
from tunebook.book._source import Source
from tunebook.records import Record


class Side(Record, frozen=True, kw_only=True, omit_defaults=False):
    """Which file a side is, and in which environment it was made; `unreadable` is how many of its entries cannot be read."""

    path: str
    kind: str
    environment: str
    problems: int
    model: str = ""
    started: str = ""
    policy: str = ""
    note: str = ""
    commit: str = ""
    dirty: bool | None = None
    unreadable: int = 0


class Diff(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What `diff` found.

    `changes` are the problems that both sides have measured, the surest change first; `only_before` and `only_after` those
    that one side lacks, `unmeasured` those that its budget left out on either side. `default_ratio` is the median of the
    defaults' times, second over first, with the least and the greatest: it is no part of any change.
    """

    before: Side
    after: Side
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    unmeasured: tuple[str, ...]
    turns: tuple[Turn, ...]
    fields: tuple[Field, ...]
    phases: tuple[PhaseChange, ...]
    between: Between
    default_ratio: tuple[float, float, float] | None
    comparable: bool

    @property
    def significant(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.significant)

    @property
    def flipped(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.flipped)


def diff(before: Source, after: Source, spread: Spread | None = None) -> Diff:
    """Compare two sides; `spread`, as `spread_between` gives it, spares reading the restarts again."""
    spread = spread or spread_between((before, after))
    mine, theirs = set(before.verdicts), set(after.verdicts)
    both = sorted(mine & theirs)
    left_out = [key for key in both if not (measured(before.verdicts[key]) and measured(after.verdicts[key]))]
    unmeasured = set(left_out)
    changes = with_rates([change_of(key, before, after, spread) for key in both if key not in unmeasured])
    return Diff(
        before=_side(before),
        after=_side(after),
        changes=changes,
        only_before=tuple(sorted(mine - theirs)),
        only_after=tuple(sorted(theirs - mine)),
        unmeasured=tuple(left_out),
        turns=turns_of(before, after, both),
        fields=fields_of(before, after),
        phases=phase_changes(before, after, spread),
        between=spread.between,
        default_ratio=_defaults(changes),
        comparable=not before.environment.differences(after.environment),
    )


def _side(source: Source) -> Side:
    header = source.header
    return Side(
        path=str(source.path),
        kind=source.kind,
        environment=source.environment.digest,
        problems=len(source.verdicts),
        model=header.model if header else "",
        started=header.started if header else "",
        policy=header.policy if header else "",
        note=header.note if header else "",
        commit=header.commit if header else "",
        dirty=header.dirty if header else None,
        unreadable=source.unreadable,
    )


def _defaults(changes: tuple[Change, ...]) -> tuple[float, float, float] | None:
    """The median, least and greatest ratio of the defaults that are the same on both sides."""
    ratios = sorted(c.default_ratio for c in changes if not c.default_changed and c.before.default_s > 0)
    return (ratios[len(ratios) // 2], ratios[0], ratios[-1]) if ratios else None
