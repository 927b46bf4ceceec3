"""The op that a kernel under ``@triton.autotune`` becomes: launched as before, with the configuration that tunebook chose.

In service a launch writes the caller's own tensors. While it is measured and checked it must not: it is run on kept copies
then, and what it writes, which is fresh at each run, is its result.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any, NamedTuple, overload

from tunebook.dispatch import FREE, Op, Scope, collector
from tunebook.dispatch import op as declare
from tunebook.errors import OpError
from tunebook.integrations.triton._arguments import Arguments
from tunebook.integrations.triton._call import Call, Live, filled, flat, is_tensor, plain, same_bits
from tunebook.integrations.triton._kernel import Kernel
from tunebook.measure import compare
from tunebook.records import Problem, Tactic

RUNNER = "triton"
#: Stands for an argument that tells no problem from another.
_IGNORED = 0
#: What serves calls on other devices than the CPU.
_SCOPES: dict[str, Scope] = {"cpu": FREE}


@overload
def op(kernel: None = None, *, name: str | None = None, outputs: Sequence[str] = ()) -> Callable[[Any], TritonOp]: ...


@overload
def op(kernel: object, *, name: str | None = None, outputs: Sequence[str] = ()) -> TritonOp: ...


def op(
    kernel: Any = None, *, name: str | None = None, outputs: Sequence[str] = ()
) -> TritonOp | Callable[[Any], TritonOp]:
    """Make a kernel under ``@triton.autotune`` an op: a decorator, with or without arguments, or a function of the kernel.

    name:    what caches know it by; by default the kernel's module and name.
    outputs: the tensor arguments that the kernel writes, by name. Those in `restore_value` and `reset_to_zero` need not be
             named. At the first call of each problem that is tuned, this is verified.

    Raises OpError for a kernel without ``@triton.autotune``, for one with a post_hook of its own, for an output that is none of
    its arguments, where nothing is said of what it writes, and for a name that is taken by another module.
    """
    if kernel is None:
        return lambda kernel: TritonOp(kernel, name, tuple(outputs))
    return TritonOp(kernel, name, tuple(outputs))


class _Met(NamedTuple):
    """What the first call of a problem said: the default's place, the places that pruning left, and `Call.whole`."""

    default: int
    allowed: tuple[int, ...]
    whole: tuple[str, ...]


class TritonOp:
    """A kernel that is launched as Triton's own: ``kernel[grid](…)``. `op` is the op that it is to tunebook.

    What is not found here is the kernel's own attribute.
    """

    def __init__(self, kernel: Any, name: str | None, outputs: tuple[str, ...]) -> None:
        self._original = kernel
        self._kernel = Kernel.of(kernel)
        function, tuner = self._kernel.function, self._kernel.tuner
        self.name = name or f"{function.__module__}.{function.__name__}"
        self._arguments = Arguments(
            self.name,
            names=self._kernel.given,
            keys=frozenset(tuner.keys),
            writes=tuple(dict.fromkeys((*outputs, *tuner.restore_value, *tuner.reset_to_zero))),
        )
        self._reset = frozenset(tuner.reset_to_zero)
        #: Of these nobody has said that they are read as well.
        self._fresh = frozenset(outputs).difference(tuner.restore_value, tuner.reset_to_zero)
        self._places = {Tactic(runner=RUNNER, params=params): place for place, params in enumerate(self._kernel.params)}
        self._met: dict[str, _Met] = {}
        self._defaults: dict[Any, int] = {}
        self._callers: dict[str, Callable[..., Any]] = {}
        self._local = threading.local()
        self.op: Op[..., Any] = self._declared()

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return functools.partial(self._call, grid)

    def run(self, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        """What ``kernel[grid]`` calls in Triton; with `warmup` the configurations are compiled and none is run."""
        if warmup:
            return self._kernel.tuner.warmup(*args, grid=grid, **self._kernel.with_heuristics(args, kwargs))
        return self._call(grid, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet, or asked for by copy and pickle
            raise AttributeError(name)
        return getattr(self._original, name)

    def __repr__(self) -> str:
        return f"<op {self.name}: {len(self._kernel.configs)} configurations of a Triton kernel>"

    def _declared(self) -> Op[..., Any]:
        def default(*args: Any) -> Any:
            """The first configuration, of those that pruning leaves."""
            live = self._live
            if live is not None:
                return self._kernel.launch(self._default_of(args, live), *live)
            return self._run(None, args)

        def configured(*args: Any, **params: Any) -> Any:
            return bind(**params)(*args)

        def bind(**params: Any) -> Callable[..., Any]:
            place = self._place(params)

            def call(*args: Any) -> Any:
                live = self._live
                return self._kernel.launch(place, *live) if live is not None else self._run(place, args)

            return call

        call = "call"
        while call in self._arguments.names:
            call += "_"
        parameters = [Parameter(one, Parameter.POSITIONAL_OR_KEYWORD) for one in (*self._arguments.names, call)]
        for function in (default, configured):
            # As of the module that declares the kernel: a worker imports that, and its code makes the version.
            functools.update_wrapper(function, self._kernel.function)
            function.__dict__["__signature__"] = Signature(parameters)
        made = declare(self.name, buckets={}, describe=self._arguments.describe, agree=self._arguments.agree)(default)
        made.runner(
            RUNNER,
            space=[dict(params) for params in self._kernel.params],
            libraries=("triton",),
            within=self._within,
            supports=self._supports,
            bind=bind,
        )(configured)
        return made

    # A call

    @property
    def _live(self) -> Live | None:
        """The caller's own arguments while a call is being made in this thread."""
        found: Live | None = getattr(self._local, "live", None)
        return found

    def _call(self, grid: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = self._kernel.with_heuristics(args, kwargs)
        given = {**self._kernel.named(args), **kwargs}
        device, values = "cpu", []
        for name in self._arguments.names:
            value = given[name] if name in given else self._kernel.defaults.get(name, _IGNORED)
            if is_tensor(value):
                device, value = value.device.type, flat(value)
            elif value is not None and name not in self._arguments.keys and plain(value):
                value = _IGNORED
            values.append(value)
        live = Live(args, kwargs, grid)
        call = () if collector() is None else self._noted(values, given, live)
        caller = self._callers.get(device) or self._caller(device)
        before, self._local.live = self._live, live
        try:
            return caller(*values, call)
        finally:
            self._local.live = before

    def _caller(self, device: str) -> Callable[..., Any]:
        scope = _SCOPES.setdefault(device, Scope("triton", device=device))
        return self._callers.setdefault(device, self.op.bind(scope=scope).caller())

    def _default_of(self, values: Sequence[Any], live: Live) -> int:
        """The place of the configuration that runs untuned: as of the first call of those that Triton's own key tells apart."""
        if not self._kernel.prunes:
            return 0
        key = self._key(values)
        if key not in self._defaults:
            self._defaults[key] = self._kernel.allowed(*live)[0]
        return self._defaults[key]

    def _key(self, values: Sequence[Any]) -> tuple[str, ...]:
        told = zip(self._arguments.names, values, strict=False)
        return tuple(str(one.dtype) if is_tensor(one) else repr(one) if plain(one) else "" for _, one in told)

    def _noted(self, values: Sequence[Any], given: dict[str, Any], live: Live) -> tuple[Any, ...]:
        """The call as it is kept while calls are collected; empty for one that is not tuned."""
        try:
            family = self._arguments.family(values)
        except OpError:
            return ()  # whoever collects says why
        views = tuple(
            (name, tuple(given[name].shape), tuple(given[name].stride()))
            for name in self._arguments.names
            if is_tensor(given.get(name)) and not given[name].is_contiguous()
        )
        known = self._met.get(family)
        allowed = known.allowed if known else self._kernel.allowed(*live)
        call = Call(
            default=known.default if known else allowed[0],
            grids=tuple(
                self._kernel.grid(live.grid, place, live.args, live.kwargs)
                for place in range(len(self._kernel.configs))
            ),
            positional=tuple(None if is_tensor(value) else value for value in live.args),
            keywords=tuple((name, None if is_tensor(value) else value) for name, value in live.kwargs.items()),
            views=views,
        )
        if known is None:
            known = self._met[family] = _Met(call.default, allowed, self._verified(values, call))
        self._defaults[self._key(values)] = known.default
        return tuple(call._replace(whole=known.whole))

    # A call on kept copies

    def _run(self, place: int | None, args: Sequence[Any]) -> tuple[Any, ...]:
        """Run a configuration (None: the default's) on values that were kept. What it wrote, as `Arguments.writes` orders it."""
        if not args[-1]:
            raise OpError(f"op {self.name}: launch it as {self._kernel.function.__name__}[grid](…)")
        call = Call(*args[-1])

        def copy(name: str, tensor: Any) -> Any:
            import torch

            return torch.empty_like(tensor) if name in call.whole else self._start(name, tensor)

        return self._run_on(call.default if place is None else place, self._arguments.tensors(args), call, copy)

    def _run_on(
        self, place: int, tensors: dict[str, Any], call: Call, copy: Callable[[str, Any], Any]
    ) -> tuple[Any, ...]:
        grid = call.grids[place]
        if isinstance(grid, str):
            raise OpError(grid)
        tensors = dict(tensors)
        for name in self._arguments.writes:
            if name in tensors:
                tensors[name] = copy(name, tensors[name])
        for name, shape, stride in call.views:
            tensors[name] = tensors[name].as_strided(shape, stride, tensors[name].storage_offset())
        args, kwargs = call.arguments(self._kernel.arguments, tensors)
        self._kernel.launch(place, args, kwargs, grid, reset=True)
        return tuple(tensors[name] for name in self._arguments.writes if name in tensors)

    def _verified(self, values: Sequence[Any], call: Call) -> tuple[str, ...]:
        """Of the outputs those that a call writes as a whole and does not read: what was there before makes no difference.

        Raises OpError where the kernel writes what is not among its outputs.
        """
        tensors, results = self._arguments.tensors(values), []
        inputs = {name: tensor.clone() for name, tensor in tensors.items() if name not in self._arguments.writes}
        fresh = [name for name in self._arguments.writes if name in self._fresh and name in tensors]
        for byte in (0xFF, 0x00):

            def copy(name: str, tensor: Any, byte: int = byte) -> Any:
                return filled(tensor, byte) if name in fresh else self._start(name, tensor)

            done = self._run_on(call.default, tensors | inputs, call, copy)
            results.append(dict(zip([name for name in self._arguments.writes if name in tensors], done, strict=True)))
            for name, tensor in inputs.items():
                if not same_bits(tensor, tensors[name]):
                    raise OpError(f"op {self.name}: the kernel writes {name}, which is not among its outputs; add it")
        first, second = results
        return tuple(name for name in fresh if not isinstance(compare(second[name], first[name]), str))

    def _start(self, name: str, tensor: Any) -> Any:
        return tensor.new_zeros(tensor.shape) if name in self._reset else tensor.clone()

    # The space

    def _place(self, params: dict[str, Any]) -> int:
        return self._places[Tactic(runner=RUNNER, params=tuple(params.items()))]

    def _within(self, problem: Problem, **params: Any) -> bool:
        """All but the default's own configuration, which races as the default."""
        known = self._met.get(problem.family)
        return known is None or known.default != self._place(params)

    def _supports(self, problem: Problem, **params: Any) -> str | None:
        known = self._met.get(problem.family)
        if known is None or self._place(params) in known.allowed:
            return None
        return "prune_configs_by leaves it out"
