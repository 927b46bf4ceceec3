"""The names of run files: beside a cache they begin with its stem, in a bundle with ``winners``; results name their run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from tunebook.records import Plan, Verdict
from tunebook.store.bundles import RUN_NAME


def bundled_name(name: str, stem: str) -> str | None:
    """What a run file of the cache with this stem is called in a bundle; None for a name that is no such file's."""
    renamed = f"winners{name.removeprefix(stem)}"
    return renamed if name.startswith(f"{stem}.") and RUN_NAME.fullmatch(renamed) else None


def names_beside(name: str, stem: str) -> Iterable[str]:
    """What a run of a bundle may be called beside the cache with this stem: its own name there, and more where that is taken."""
    found = RUN_NAME.fullmatch(name)
    assert found is not None
    own = f"{stem}{found[1]}"
    yield own
    begin = re.sub(r"(-[0-9]+)?\.jsonl$", "", own)
    yield from (other for number in range(1, 1000) if (other := f"{begin}-{number}.jsonl") != own)


def rest_on(verdicts: Iterable[Verdict], plans: Iterable[Plan]) -> set[str]:
    """The names of the runs that these results come from."""
    names = {verdict.run for verdict in verdicts} | {plan.run for plan in plans}
    return names - {""}


def renamed(
    verdicts: Mapping[str, Verdict], plans: Mapping[str, Plan], names: Mapping[str, str]
) -> tuple[dict[str, Verdict], dict[str, Plan]]:
    """The results with the new names of the runs that they come from."""

    def of(entry: Verdict | Plan) -> dict[str, str]:
        return {"run": names.get(entry.run, entry.run)}

    return (
        {key: msgspec.structs.replace(verdict, **of(verdict)) for key, verdict in verdicts.items()},
        {key: plan.replace(**of(plan)) for key, plan in plans.items()},
    )


def age(path: Path | str) -> str:
    """Sorts the names of runs by when they began."""
    return Path(path).name.partition(".")[2]
