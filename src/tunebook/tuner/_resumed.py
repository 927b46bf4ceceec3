"""A tuning that goes on in its own run file: what the file holds, and whether it can go on here at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from tunebook.errors import StoreError
from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Environment, Header, Offered, Plan, Settings, Verdict
from tunebook.store import Recorded, Run, RunWriter, read_run
from tunebook.tuner._entrants import Selection, available_runners

logger = logging.getLogger("tunebook.tuner")


class Resumed:
    """A run that was interrupted, open for going on. `verdicts` are all that it reached, `plans` the last ones."""

    def __init__(self, run: Run, writer: RunWriter) -> None:
        self.path: Path = run.path
        self.header: Header = run.header
        self.settings: Settings = run.header.settings
        self.writer = writer
        self.verdicts: Mapping[str, Verdict] = run.verdicts
        self.plans: Mapping[str, Plan] = run.plans
        self.races = max((race.line.race for known in run.problems.values() for race in known.races), default=0)
        #: What measuring took, in seconds: so much of the budget is spent.
        self.spent = sum(known.seconds for known in run.problems.values())
        self.settled = sum(not self._unfinished(known) for known in run.problems.values())
        self._problems = run.problems
        self._told: set[tuple[str, str]] = set()

    @classmethod
    def open(cls, path: Path | str, environment: Environment, fingerprint: str, name: str) -> Resumed:
        """The run at `path`, which no other process writes meanwhile.

        Raises StoreError, in one line, for what is no run file or cannot be written, and for a run that another process is
        writing, that ended by itself, that was made in another environment or of another model than `name`.
        """
        path = Path(path).absolute()
        writer = RunWriter.reopen(path)
        try:
            run = read_run(path)
            _check(run, environment, fingerprint, name)
        except BaseException:
            writer.close()
            raise
        for miss in run.misses:
            logger.warning("%s", miss)
        soft = [text for text in run.header.environment.soft_differences(environment) if not text.startswith("load")]
        if soft:
            logger.warning("the run goes on in an environment that has changed: %s", ", ".join(soft))
        return cls(run, writer)

    @property
    def selection(self) -> Selection:
        return Selection(self.settings.ops, self.settings.skip_ops, self.settings.runners)

    def unfinished(self, key: str) -> bool:
        """Whether a problem was begun and not settled, or left out."""
        known = self._problems.get(key)
        return known is not None and self._unfinished(known)

    def settles(self, key: str) -> bool:
        """Whether the run settled a problem."""
        known = self._problems.get(key)
        return known is not None and not self._unfinished(known)

    def decided(self, key: str) -> bool:
        """Whether the run has a verdict on a problem that was measured, settled or not."""
        return key in self.verdicts and self.verdicts[key].rounds > 0

    def raced(self, key: str) -> tuple[str, ...]:
        """The runners that the run raced on a problem."""
        known = self._problems[key]
        offered = known.offered or (known.verdict.offered if known.verdict is not None else {})
        return tuple(name for name in offered if name != DEFAULT.runner)

    def recorded(self, key: str, spec: OpSpec, default_version: str) -> Recorded | None:
        """What is known of an unfinished problem and still holds: without runners that are not what they were."""
        known = self._problems.get(key)
        if known is None or not self._unfinished(known):
            return None
        runners = available_runners(spec)
        now = {DEFAULT.runner: Offered(version=default_version, space="")}
        now |= {name: runner.offered for name, runner in runners.items()}
        changed = [name for name, offered in known.offered.items() if now.get(name) != offered]
        for name in changed:
            if (spec.name, name) not in self._told:
                self._told.add((spec.name, name))
                what = "the default" if name == DEFAULT.runner else f"runner {name}"
                logger.warning(
                    "op %s: %s is not what it was when the run was interrupted: what was measured of it does not count",
                    spec.name,
                    what,
                )
        return known.without(changed)

    def _unfinished(self, known: Recorded) -> bool:
        if known.verdict is None:
            return bool(known.offered)
        return known.open or not known.verdict.rounds


def _check(run: Run, environment: Environment, fingerprint: str, name: str) -> None:
    header, where = run.header, run.path
    if run.footer is not None:
        raise StoreError(
            f"{where}: this run ended by itself at {run.footer.finished}, there is nothing to resume; "
            "`tunebook tune --continue` goes on with what a tuning left unresolved or left out"
        )
    if not header.settings.cache or header.policy == "replay":
        raise StoreError(f"{where}: this run was not written so that it can be resumed (tunebook {header.version})")
    differences = header.environment.differences(environment)
    if differences:
        raise StoreError(
            f"{where}: this run was made in another environment ({', '.join(differences)}); tune afresh here"
        )
    if header.fingerprint != fingerprint:
        theirs, mine = header.model or "a block of calls", name or "a block of calls"
        raise StoreError(
            f"{where}: this run tuned {theirs} (fingerprint {header.fingerprint or 'none'}), which is not "
            f"{mine} (fingerprint {fingerprint or 'none'})"
        )
