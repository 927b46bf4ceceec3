"""The tuning's side of a worker process: jobs with limits of time, what became of each, and an end that leaves nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunebook.measure._check import Finding
from tunebook.measure._isolate._ends import ended_by_itself, last_words
from tunebook.measure._isolate._link import END_S, SLICE_S, GoneError, Link
from tunebook.measure._isolate._messages import At, Done, Ended, HostError, Load, Loaded, Pause, Ready

#: Starting an interpreter, and importing what is asked for, may take so many seconds.
START_S = 120.0
#: A worker whose connection broke ends by itself within so many seconds, or is ended.
BROKEN_S = 2.0


@dataclass(frozen=True)
class Stage:
    """A part of a job: what it is in words ("M=16"), and the seconds that it may take."""

    words: str
    seconds: float


class Host:
    """Runs jobs in a worker process, which is started when one has to be `ready`.

    `server` names what does the jobs there, as ``module:class``; see `Server`. Nothing of it is imported here.
    Workers are forks of one that has imported everything, where that is safe and `fork` allows it: a device that was used
    there cannot be used in a fork.
    Not for several threads at once.
    """

    def __init__(self, server: str, *, start_s: float = START_S, fork: bool = True) -> None:
        self._server = server
        self._fork = fork
        self._start_s = start_s
        self._link: Link | None = None
        self._loads: list[bytes] = []
        self._begun: bytes | None = None  #: what the supervisor imports, and hears nothing meanwhile
        self.started = 0  #: workers so far

    def begin(self, payload: bytes) -> None:
        """Have the supervisor begin to import what `payload` names; `load` with the same payload waits for it.

        Raises HostError where no supervisor can be started.
        """
        self._ask(self._supervised(), payload)

    def load(self, payload: bytes) -> bytes:
        """Have the supervisor import what `payload` names; workers that start from now on have it.

        Raises HostError where it ends, or does not answer in time.
        """
        if self._link is not None and self._begun is not None and self._begun != payload:
            self._answer(self._link, self._begun)
        link = self._supervised()
        if self._begun is None:
            self._ask(link, payload)
        return self._answer(link, payload)

    def ready(self) -> int:
        """Have a worker that waits for a job; how many it has done. Raises HostError where none can be started."""
        if not self.alive or self._died_idle():
            self._start()
        return self.jobs

    @property
    def alive(self) -> bool:
        """Whether there is a worker, as far as is known."""
        return self._link is not None and self._link.has_worker

    @property
    def jobs(self) -> int:
        """How many jobs the worker that runs now was given."""
        return self._link.jobs if self._link is not None else 0

    def run(self, payload: bytes, fds: Sequence[int], stages: Sequence[Stage]) -> bytes | Finding:
        """Have the worker that is `ready` do a job of these stages.

        Its result, or why it had to be ended: then the next one that is `ready` is another.
        """
        assert self._link is not None
        try:
            self._link.give(payload, fds)
            return self._watch(self._link, stages)
        except GoneError:
            self._abandon()
            return Finding("crash", "the supervising process ended with it", harm=True)
        except BaseException:
            self._abandon()
            raise

    def replace(self) -> None:
        """End the worker; the next job has a new one."""
        if self._link is not None and self._link.has_worker:
            with contextlib.suppress(GoneError):
                self._link.end_worker()
            self._link.forget_worker()

    def close(self) -> None:
        """End the worker and its supervisor; returns when they and all that they started are gone."""
        self._abandon()
        self._loads.clear()

    def _watch(self, link: Link, stages: Sequence[Stage]) -> bytes | Finding:
        stage, spent = 0, 0.0
        while True:
            words, limit = stages[stage].words, stages[stage].seconds
            if spent >= limit:
                link.end_worker()
                return Finding("timeout", f"{words}: not done within {limit:.0f} s", harm=True)
            begun = time.monotonic()
            got = link.hear(min(limit - spent, SLICE_S))
            spent += min(time.monotonic() - begun, 2 * SLICE_S)
            match got:
                case None:
                    continue
                case At(number) if 0 <= number < len(stages):
                    stage, spent = number, 0.0
                case Done(payload):
                    link.tell(Pause())
                    return payload
                case Ended(status):
                    link.forget_worker()
                    return ended_by_itself(words, status, link.tail)
                case _:  # its connection broke, as it does where it ends; or it answers nonsense
                    ended = link.wait_for((Ended,), BROKEN_S)
                    if isinstance(ended, Ended):
                        link.forget_worker()
                        return ended_by_itself(words, ended.status, link.tail)
                    link.end_worker()
                    return Finding("crash", f"{words}: it broke the connection to the tuning", harm=True)

    def _died_idle(self) -> bool:
        """Whether the worker, or its supervisor, ended since its last job."""
        assert self._link is not None
        try:
            got = self._link.hear(0.0)
            got = self._link.hear(0.0) if got is None else got  # the first call may have read what the second one finds
            if got is not None and not isinstance(got, Ended):
                self._link.end_worker()
            return got is not None
        except GoneError:
            self._abandon()
            return True

    def _start(self) -> None:
        """Start a worker, in the place of one that ended."""
        link = self._supervised()
        link.forget_worker()
        try:
            link.start_worker()
        except GoneError as error:
            self._abandon()
            raise HostError("the supervising process is gone") from error
        self.started += 1
        try:
            answer = link.wait_for((Ready, Ended), self._start_s)
        except GoneError:
            answer = None
        if not isinstance(answer, Ready):
            self._abandon()
            raise HostError("the worker process did not start")

    def _supervised(self) -> Link:
        """The supervisor; where none runs, a new one with all that the former one had loaded."""
        if self._link is not None and self._link.running:
            return self._link
        self._abandon()
        self._link = link = Link(self._server, fork=self._fork)
        before, self._loads = self._loads, []
        for payload in before:
            self._ask(link, payload)
            self._answer(link, payload)
        return link

    def _ask(self, link: Link, payload: bytes) -> None:
        self._begun = payload
        with contextlib.suppress(GoneError):  # that is found where the answer is waited for
            link.tell(Load(payload))

    def _answer(self, link: Link, payload: bytes) -> bytes:
        try:
            answer = link.wait_for((Loaded,), self._start_s)
        except GoneError:
            code = link.exit_code()
            tail = last_words(link.tail)
            self._abandon()
            raise HostError(f"the process that imports the tactics ended with code {code}{tail}") from None
        if not isinstance(answer, Loaded):
            self._abandon()
            raise HostError(f"importing the tactics took longer than {self._start_s:.0f} s")
        self._begun = None
        self._loads.append(payload)
        return answer.payload

    def _abandon(self) -> None:
        """End everything at once."""
        if self._link is not None:
            self._link.close(0.0 if self._begun is not None else END_S)
        self._link = self._begun = None
