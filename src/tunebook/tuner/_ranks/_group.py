"""The ranks of a group: who they are, and what they say to each other. Over the group's store; no collective is used."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from tunebook.envs import envs
from tunebook.errors import RankError, UsageError
from tunebook.tuner._ranks._errors import ContradictionError
from tunebook.tuner._ranks._line import NOT_YET, Failed, Line, Peer

logger = logging.getLogger("tunebook.ranks")

T = TypeVar("T")

#: What the errors of a backend have in common: they name it, or the connection.
_COLLECTIVE = re.compile(r"gloo|nccl|connection (closed|reset) by peer", re.IGNORECASE)

_encoder = msgspec.json.Encoder(order="deterministic")


class Group:
    """The ranks that tune together. Every one calls the same methods in the same order.

    `me` is this rank's place in the group, `names` what each is called in messages; the one at place 0 leads: it decides
    what has to be decided once, and keeps the files. What is sent is JSON: nothing that is received can run code.
    """

    def __init__(self, group: Any, *, limit_collectives: bool = True) -> None:
        """Raises UsageError where torch.distributed is not initialised, or this process is not in `group`.

        Until it is closed, collectives of the group have the ranks' timeout as their limit, unless `limit_collectives` is
        off: they are then somebody else's, and may wait for long.
        """
        dist = _distributed()
        if not isinstance(group, dist.ProcessGroup):
            raise UsageError(f"group={group!r} is not a process group that this process belongs to")
        self.me: int = dist.get_rank(group)
        self.numbers: tuple[int, ...] = tuple(dist.get_process_group_ranks(group))
        self.names = tuple(_name(place, number) for place, number in enumerate(self.numbers))
        self.process_group = group
        self.timeout = envs.TUNEBOOK_RANK_TIMEOUT_S.get()
        base = group.get_group_store()
        # counted in the store, so that blocks one after another do not read each other's messages
        session = base.add(f"tunebook/sessions/{self.me}", 1)
        store = dist.PrefixStore(f"tunebook/{session}", base)
        peers = [Peer(name, number) for name, number in zip(self.names, self.numbers, strict=True)]
        holder, place = self._holder(dist, base)
        self.line = Line(store, peers, self.me, self.timeout, holder, place)
        self._counts: dict[str, int] = {}
        self._keys: list[str] = []
        self._mail_read = [0] * self.size
        self._mail_sent = 0
        self._closed = False
        self._former = _limit_collectives(group, self.timeout) if limit_collectives else None

    def _holder(self, dist: Any, store: Any) -> tuple[str, int | None]:
        """Who holds the store, in words, and the place in the group."""
        while isinstance(store, dist.PrefixStore):
            store = store.underlying_store
        if not isinstance(store, dist.TCPStore):
            return f"the group's {type(store).__name__}", None
        if dist.is_torchelastic_launched():
            return "the launcher, which holds the group's store", None
        place = self.numbers.index(0) if 0 in self.numbers else None
        return f"{self.names[place] if place is not None else 'rank 0'}, which holds the group's store", place

    @property
    def size(self) -> int:
        return len(self.numbers)

    @property
    def leads(self) -> bool:
        return self.me == 0

    @property
    def number(self) -> int:
        """This rank's number in the whole job."""
        return self.numbers[self.me]

    @property
    def failed(self) -> bool:
        return self.line.failure is not None

    def enter(self, stage: str) -> None:
        """What this rank does from now on: what the others are told where it dies there."""
        self.line.enter(stage)

    def gather(self, what: str, message: Any, kind: type[T]) -> list[T]:
        """What every rank says, by place. Waits for all of them."""
        name = self._next(what)
        keys = [f"{name}/{place}" for place in range(self.size)]
        data = _encoder.encode(message)
        self._keys += keys
        self.line.ask(lambda store: store.set(keys[self.me], data))
        return [msgspec.json.decode(text, type=kind) for text in self._take(keys)]

    def tell(self, what: str, message: Any, kind: type[T]) -> T:
        """What the leader says; others' `message` does not matter. All get it decoded from the same bytes."""
        name = self._next(what)
        self._keys.append(name)
        if self.leads:
            data = _encoder.encode(message)
            self.line.ask(lambda store: store.set(name, data))
        else:
            (data,) = self._take([name])
        return msgspec.json.decode(data, type=kind)

    def combine(self, message: Any, kind: type[T], decide: Callable[[list[T]], T]) -> T:
        """What the leader makes of what every rank says, told to all: two short messages, for steps taken together."""
        count = self._counts["step"] = self._counts.get("step", 0) + 1
        said, told, before = [f"said/{p}/{count}" for p in range(self.size)], f"told/{count}", f"told/{count - 1}"
        data = _encoder.encode(message)
        if not self.leads:

            def answer(store: Any) -> Any:
                return bytes(store.get(told)) if store.check([told]) else NOT_YET

            self.line.ask(lambda store: store.set(said[self.me], data))
            return msgspec.json.decode(self.line.ask(answer), type=kind)
        heard = [msgspec.json.decode(text, type=kind) for text in self._take(said[1:])]
        decided = _encoder.encode(decide([msgspec.json.decode(data, type=kind), *heard]))

        def post(store: Any) -> None:
            store.set(told, decided)
            for key in (*said[1:], before):  # all have spoken again: nobody reads these any more
                store.delete_key(key)

        self.line.ask(post)
        return msgspec.json.decode(decided, type=kind)

    def send(self, message: Any) -> None:
        """Mail to the leader, who reads it when it has time. Nobody waits."""
        data = _encoder.encode(message)
        self.line.ask(lambda store: store.set(f"mail/{self.me}/{self._mail_sent}", data))
        self._mail_sent += 1

    def mail(self, kind: type[T], *, last: bool = False) -> list[tuple[int, T]]:
        """The leader's mail since the last time, each with its sender's place; the `last` time, as far as the store is there."""

        def take(store: Any) -> list[tuple[int, bytes]]:
            found = []
            for place in range(1, self.size):
                while store.check([key := f"mail/{place}/{self._mail_read[place]}"]):
                    found.append((place, bytes(store.get(key))))
                    store.delete_key(key)
                    self._mail_read[place] += 1
            return found

        return [(place, msgspec.json.decode(data, type=kind)) for place, data in self.line.ask(take, last=last) or ()]

    def wait(self, key: str, meanwhile: Callable[[], None], every: float = 0.5) -> None:
        """Wait until somebody has set `key`, and do something every so many seconds."""
        while self.line.ask(lambda store: store.check([key]) or NOT_YET, every) is NOT_YET:
            meanwhile()

    def number_of(self, what: str) -> int:
        """How many have asked so for `what`: a ticket, from 1 on."""
        self._keys.append(what)
        return int(self.line.ask(lambda store: store.add(what, 1)))

    def mark(self, key: str) -> None:
        """Set `key`, for those who wait for it."""
        self._keys.append(key)
        self.line.ask(lambda store: store.set(key, b""))

    def fail(self, error: BaseException) -> None:
        """This rank cannot go on: the others end with an error that names it. What all of them find is told by nobody."""
        if isinstance(error, RankError | ContradictionError) or self.failed:
            return
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
        stage = self.line.stage
        verb = "was ended" if not isinstance(error, Exception) else "failed"
        self.line.fail(Failed(self.number, stage, f"{self.names[self.me]} {verb} while it was {stage}: {what}"))

    def loss(self) -> RankError | None:
        """Wait until it is known that a rank was lost, as long as that may take; None where none is."""
        for _ in range(math.ceil(self.timeout / self.line.interval)):
            if self.failed:
                break
            time.sleep(self.line.interval)
        return self.line.failure

    def close(self) -> None:
        """The end of a tuning that went well. The leader waits until all have read what it said, then removes the messages.

        Raises nothing: what had to be kept is kept. Where a rank dies here, its messages stay in the store.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self.failed and not self.leads:
                self.line.ask(lambda store: store.set(f"bye/{self.me}", b""))
            elif not self.failed:
                byes = [f"bye/{place}" for place in range(1, self.size)]
                self._take(byes)
                own = {
                    *self._keys,
                    *byes,
                    f"told/{self._counts.get('step', 0)}",
                    *(f"beat/{p}" for p in range(self.size)),
                }
                self.line.ask(lambda store: [store.delete_key(key) for key in sorted(own - {f"beat/{self.me}"})])
        except RankError as error:
            logger.warning("%s; the tuning was over by then, and is kept", error)
        self.line.close()
        if self._former is not None:
            self.process_group.set_timeout(self._former)

    def _next(self, what: str) -> str:
        self._counts[what] = self._counts.get(what, 0) + 1
        return f"{what}/{self._counts[what]}"

    def _take(self, keys: Sequence[str]) -> list[bytes]:
        if not keys:
            return []

        def all_of_them(store: Any) -> Any:
            return [bytes(store.get(key)) for key in keys] if store.check(list(keys)) else NOT_YET

        found: list[bytes] = self.line.ask(all_of_them)
        return found


def of_a_collective(error: BaseException) -> bool:
    """Whether an error is what torch.distributed raises where a rank at the other end of a collective is gone."""
    return isinstance(error, RuntimeError) and _COLLECTIVE.search(str(error)) is not None


def _limit_collectives(group: Any, timeout: float) -> timedelta | None:
    """Have no collective of the group take longer than `timeout` seconds; what the limit was, None where it is left alone.

    A rank that waits in one for a rank that is lost cannot be called back in any other way.
    """
    import torch

    device = torch.device("cpu" if "gloo" in group.name() else "cuda")
    try:
        former: timedelta = group._get_backend(device).options._timeout
    except (AttributeError, RuntimeError):  # a backend that does not tell: its own limit counts
        return None
    if former.total_seconds() <= timeout:
        return None
    group.set_timeout(timedelta(seconds=timeout))
    return former


def _name(place: int, number: int) -> str:
    return f"rank {number}" if place == number else f"rank {number} (place {place} in the group)"


def _distributed() -> Any:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise UsageError("group=… needs torch.distributed: call torch.distributed.init_process_group first")
    return dist


def listed(names: Iterable[str], limit: int = 4) -> str:
    """``rank 1, rank 2, … and 5 more``: bounded, for one line."""
    some = list(names)
    more = f" and {len(some) - limit} more" if len(some) > limit else ""
    return ", ".join(some[:limit]) + more
