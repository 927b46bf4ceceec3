"""Calls as CUDA graphs, which share the memory for what they compute on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

#: Calls before a capture: libraries allocate, choose algorithms and load kernels in their first ones, which no graph may hold.
CAPTURE_WARM_UP = 3


class Replay:
    """A graph of one call. Called, it starts the graph on the current stream and gives what the captured call returned.

    That lies in the graph's own memory, and every replay writes it anew. Everything that the call reads has to stay where it
    is: so the call is kept, and with it its arguments.
    """

    def __init__(self, graph: Any, call: Callable[[], Any], result: Any) -> None:
        self.graph = graph
        self._call = call
        self._result = result

    def __call__(self) -> Any:
        self.graph.replay()
        return self._result


class Graphs:
    """The graphs of one device. They share one pool of memory, as long as there are any.

    A race holds hundreds: each with memory of its own would need gigabytes. PyTorch allows to share it among graphs that never
    run at the same time and of which none reads what another left. A graph writes to memory that is free when it is captured:
    what earlier ones computed on the way, and not their results, which are all kept. An earlier one that is replayed later may
    so write to the result of a later one: a result is to be read before another graph runs.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._alive: WeakSet[Replay] = WeakSet()

    def capture(self, call: Callable[[], Any], stream: Any, synchronize: Callable[[], None]) -> Replay:
        """Warm `call` up and capture it on `stream`, which is the current one and not the default one.

        Raises what `call` raises; where it did what no capture allows, that is CUDA's word for it.
        """
        for _ in range(CAPTURE_WARM_UP):
            call()
        synchronize()
        graph = self._cuda.CUDAGraph()
        pool = next((replay.graph.pool() for replay in self._alive), None)
        shared = {} if pool is None else {"pool": pool}
        failed: Exception | None = None
        result = None
        try:
            with self._cuda.graph(graph, stream=stream, **shared):
                try:
                    result = call()
                except Exception as error:
                    failed = error
                    raise
        except Exception as error:  # noqa: BLE001 - it is raised again, or what came before it
            # The pool may not be fit for another capture. Ending a capture that has failed raises too, of which nobody learns
            # what was wrong.
            self._alive.clear()
            raise (failed or error) from None
        replay = Replay(graph, call, result)
        self._alive.add(replay)
        return replay
