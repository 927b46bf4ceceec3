"""The line to the other ranks: one thread that alone talks to the group's store, sends this rank's beats and hears theirs."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from tunebook.errors import RankError

logger = logging.getLogger("tunebook.ranks")

T = TypeVar("T")

#: What a question to the store answers where the answer is not there yet.
NOT_YET: Final = object()
#: A rank is taken for dead after this share of the timeout without a beat; what is left is for the others to hear of it.
SILENCE_SHARE = 0.75
#: So many beats fit into the timeout.
BEATS = 12
#: The longest time between two beats, in seconds.
LONGEST_BEAT_S = 5.0
#: An answer that is not there is asked for again after so many seconds, then after twice as many, up to the second figure.
FIRST_PAUSE_S, LAST_PAUSE_S = 5e-5, 5e-2

_FAILED = "failed"
_ENDED = "ended"


class Failed(msgspec.Struct, frozen=True):
    """Why the tuning ends on all ranks: `rank` is the one that is to blame, by its number in the whole job."""

    rank: int
    stage: str
    message: str


@dataclass
class Peer:
    """What is known of another rank. `silence` counts only seconds in which this process was itself awake."""

    name: str
    number: int
    beat: bytes = b""
    silence: float = 0.0

    @property
    def stage(self) -> str:
        return self.beat.partition(b" ")[2].decode() or "joining"

    @property
    def ended(self) -> bool:
        return self.stage == _ENDED


@dataclass
class _Job(Generic[T]):
    ask: Callable[[Any], T]
    patience: float | None
    done: threading.Event = field(default_factory=threading.Event)
    answer: Any = NOT_YET
    given_up: bool = False


class Line:
    """Questions to a store that never block longer than `timeout` seconds after a rank, or the store itself, went silent.

    `store` is a torch.distributed Store of this session alone; `peers` are all ranks of the group by their place in it,
    `me` the place of this one. `holder` says in words who holds the store, `holder_place` is its place in the group or None.

    A beat is a counter with the stage. The store's own blocking calls are not used: they cannot be ended from here, and they
    print warnings when their time is over. The first error that is found ends everything: it is kept in `failure`.
    """

    def __init__(
        self, store: Any, peers: Sequence[Peer], me: int, timeout: float, holder: str, holder_place: int | None
    ) -> None:
        self.peers = tuple(peers)
        self.me = me
        self.timeout = timeout
        self.interval = min(timeout / BEATS, LONGEST_BEAT_S)
        self.stage = "joining"
        self.failure: RankError | None = None
        self._made = store
        self._holder = holder
        self._holder_place = holder_place
        self._beats = 0
        self._operations = 0
        self._asking = False
        self._due = 0.0
        self._heard = time.monotonic()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tunebook-ranks", daemon=True)
        self._thread.start()

    def ask(self, question: Callable[[Any], T], patience: float | None = None, *, last: bool = False) -> T:
        """What `question(store)` answers, asked again and again as long as that is `NOT_YET`, for `patience` seconds at most.

        Raises RankError as soon as a rank or the store is known to be lost. The `last` question may be asked even then; its
        answer is None where the store does not give one at once.
        """
        if last and self.failure is not None:
            return self._last(question)
        self.check()
        job: _Job[T] = _Job(question, patience)
        self._jobs.put(job)
        stuck, operations = 0.0, -1
        while not job.done.wait(self.interval):
            # A store that does not answer holds the thread fast: it is this one that has to notice.
            stuck = stuck + self.interval if self._asking and operations == self._operations else 0.0
            operations = self._operations
            if stuck >= SILENCE_SHARE * self.timeout:
                self._lost(f"has not answered for {stuck:.3g} s")
            if self.failure is not None:
                job.given_up = True
                raise self.failure
        self.check()
        answer: T = job.answer
        return answer

    def _last(self, question: Callable[[Any], T]) -> T:
        job: _Job[T] = _Job(question, 0.0)
        if self._thread.is_alive():
            self._jobs.put(job)
            job.done.wait(2 * self.interval)
        answer: Any = None if job.answer is NOT_YET else job.answer
        return answer  # type: ignore[no-any-return]

    def check(self) -> None:
        """Raise the failure that is known, if there is one."""
        if self.failure is not None:
            raise self.failure

    def enter(self, stage: str) -> None:
        """Tell all ranks what this one does now, before it does it."""
        self.stage = stage
        self.ask(self._round)
        logger.debug("%s: %s", self.peers[self.me].name, stage)

    def fail(self, failed: Failed) -> None:
        """End the tuning on all ranks, if that has not happened, without waiting for anybody."""
        if self.failure is None:
            self.failure = RankError(failed.message, rank=failed.rank, stage=failed.stage)
            self._jobs.put(_Job(lambda store: _post(store, failed), None))
            self._jobs.put(None)
            self._thread.join(self.interval)

    def close(self) -> None:
        """The last beat, which says that silence means nothing from now on; the thread ends."""
        self.stage = _ENDED
        if self.failure is None:
            self.ask(self._beat)
        self._jobs.put(None)
        self._thread.join(self.interval)

    # Below, everything runs in the thread.

    def _run(self) -> None:
        try:
            store = self._operation(lambda made: made.clone(), self._made)
            while True:
                try:
                    job = self._jobs.get(timeout=max(0.0, self._due - time.monotonic()))
                except queue.Empty:
                    self._round(store)
                    continue
                if job is None:
                    return
                self._serve(job, store)
        except Exception as error:  # noqa: BLE001 - as a rule torch's DistError: the connection is broken
            lines = str(error).splitlines()
            self._lost(f"does not answer ({lines[0] if lines else type(error).__name__})")

    def _serve(self, job: _Job[Any], store: Any) -> None:
        pause, begun = FIRST_PAUSE_S, time.monotonic()
        while not job.given_up:
            job.answer = self._operation(job.ask, store)
            over = job.patience is not None and time.monotonic() - begun >= job.patience
            if job.answer is not NOT_YET or over or self.failure is not None:
                job.done.set()
                return
            if time.monotonic() >= self._due:
                self._round(store)
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    def _operation(self, question: Callable[[Any], T], store: Any) -> T:
        self._operations += 1
        self._asking = True
        answer = question(store)
        self._asking = False
        return answer

    def _beat(self, store: Any) -> None:
        self._beats += 1
        store.set(f"beat/{self.me}", f"{self._beats} {self.stage}")

    def _round(self, store: Any) -> None:
        """Send a beat, hear those of the others, and see whether somebody has failed."""
        now = time.monotonic()
        passed = min(
            now - self._heard, 2 * self.interval
        )  # a process that was stopped knows nothing of the others' silence
        self._heard, self._due = now, now + self.interval
        self._operation(self._beat, store)  # says the stage, too
        if self.failure is not None:
            return
        if self._operation(lambda store: store.check([_FAILED]), store):
            self._ended_by(msgspec.json.decode(self._operation(lambda store: store.get(_FAILED), store), type=Failed))
            return
        for place, peer in enumerate(self.peers):
            if place != self.me and not peer.ended:
                self._hear(store, place, peer, passed)

    def _hear(self, store: Any, place: int, peer: Peer, passed: float) -> None:
        key = f"beat/{place}"
        there = bool(peer.beat) or self._operation(lambda store: store.check([key]), store)
        beat = bytes(self._operation(lambda store: store.get(key), store)) if there else b""
        peer.silence = peer.silence + passed if beat == peer.beat else 0.0
        peer.beat = beat
        if peer.silence < (SILENCE_SHARE if beat else 1.0) * self.timeout:
            return
        if beat:
            message = f"{peer.name} died or hangs: no sign of life for {peer.silence:.3g} s, since it was {peer.stage}"
        else:
            message = f"{peer.name} has not joined: it did not begin to tune within {self.timeout:g} s"
        failed = Failed(peer.number, peer.stage, f"{message} (TUNEBOOK_RANK_TIMEOUT_S={self.timeout:g})")
        self._ended_by(failed)
        self._operation(lambda store: _post(store, failed), store)

    def _ended_by(self, failed: Failed) -> None:
        if self.failure is None:
            self.failure = RankError(failed.message, rank=failed.rank, stage=failed.stage)

    def _lost(self, what: str) -> None:
        """The store is gone, and most likely the rank that holds it."""
        peer = None if self._holder_place is None else self.peers[self._holder_place]
        stage = peer.stage if peer is not None and self._holder_place != self.me else self.stage
        since = f", last known to be {stage}," if peer is not None and self._holder_place != self.me else ""
        number = peer.number if peer is not None else -1
        self._ended_by(Failed(number, stage, f"{self._holder}{since} {what}"))


def _post(store: Any, failed: Failed) -> None:
    """The first one counts."""
    if store.add("failures", 1) == 1:
        store.set(_FAILED, msgspec.json.encode(failed))
