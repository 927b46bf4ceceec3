"""Whether two runs, or a run and this process, are of the same code on the same machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunebook.book._source import Source
from tunebook.records import DEFAULT, Environment, Offered, Tactic

#: Soft fields that are no part of the code, and differ from start to start.
PASSING = ("load",)


@dataclass(frozen=True)
class Code:
    """What a problem's tactics were made of: the versions by runner, and the environment."""

    versions: Mapping[str, str]
    environment: Environment

    @classmethod
    def of(cls, side: Source, problem: str) -> Code:
        return cls.offered(side.verdicts[problem].offered, side.environment)

    @classmethod
    def offered(cls, offered: Mapping[str, Offered], environment: Environment) -> Code:
        return cls({name: one.version for name, one in offered.items()}, environment)

    def same(self, other: Code, tactics: Iterable[str]) -> bool:
        """Whether the default and these tactics are the same on the same machine, with the same libraries."""
        runners = {DEFAULT.runner, *(Tactic.parse(name).runner for name in tactics)}
        return (
            self.environment.hard == other.environment.hard
            and lasting(self.environment) == lasting(other.environment)
            and all(self.versions.get(name) == other.versions.get(name) for name in runners)
        )


def lasting(environment: Environment) -> dict[str, str]:
    """The soft fields that are part of the code: versions, not the load."""
    return {name: value for name, value in environment.soft.items() if name not in PASSING}
