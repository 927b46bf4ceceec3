"""A kernel under ``@triton.autotune``: its configurations, which of them a call may have, and how one is launched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunebook.errors import OpError
from tunebook.records import Scalar

#: What is read of Triton's `Autotuner`.
_NEEDED = (
    "arg_names",
    "configs",
    "fn",
    "keys",
    "prune_configs",
    "reset_to_zero",
    "restore_value",
    "user_defined_post_hook",
)
#: The Triton that this is tested with.
TESTED = "3.9.0"

Params = tuple[tuple[str, Scalar], ...]
Values = Mapping[str, Callable[[dict[str, Any]], Any]]


@dataclass(frozen=True, eq=False)
class Kernel:
    """What `triton.autotune` made of a function, with the heuristics above and below it.

    `configs` are the configurations, each once, and `params` what tells them apart, in the same order.
    """

    tuner: Any
    outer: tuple[Values, ...]
    inner: tuple[Values, ...]
    configs: tuple[Any, ...]
    params: tuple[Params, ...]

    @classmethod
    def of(cls, kernel: Any) -> Kernel:
        """Take a kernel apart. Raises OpError for one that Triton does not tune, or that cannot be run by others."""
        outer, tuner = _heuristics(kernel)
        name = getattr(tuner, "__name__", None) or type(tuner).__name__
        if not hasattr(tuner, "prune_configs"):
            raise OpError(f"{name} lists no configurations: put @triton.autotune(configs=…, key=…) right below")
        name = tuner.base_fn.__name__
        lacking = [attribute for attribute in _NEEDED if not hasattr(tuner, attribute)]
        if lacking:
            raise OpError(
                f"{name}: this Triton's autotuner has no {lacking[0]}; tunebook is tested with triton {TESTED}"
            )
        if tuner.user_defined_post_hook:
            raise OpError(
                f"{name}: a post_hook of your own may undo what the kernel wrote before it is compared; leave it out, and "
                "name what has to be restored in restore_value"
            )
        inner, _ = _heuristics(tuner.fn)
        configs: list[Any] = []
        for config in tuner.configs:
            if config not in configs:
                configs.append(config)
        params = tuple(_params(config) for config in configs)
        if len(set(map(repr, params))) != len(params):
            raise OpError(f"{name}: two configurations are alike but for their pre_hook; a tactic has no name for that")
        return cls(tuner, outer, inner, tuple(configs), params)

    @property
    def function(self) -> Any:
        """The Python function that the user wrote."""
        return self.tuner.base_fn

    @property
    def arguments(self) -> tuple[str, ...]:
        """All parameters of the kernel, by name and in order."""
        return tuple(self.tuner.arg_names)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The defaults of those parameters that have one."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.default is not one.empty}

    @property
    def given(self) -> tuple[str, ...]:
        """The parameters that the tuner is given: those that neither configurations nor heuristics below it set."""
        values = {name for values in self.inner for name in values}
        tuned = {name for config in self.configs for name in config.kwargs}
        return tuple(name for name in self.arguments if name not in values | tuned)

    @property
    def prunes(self) -> bool:
        """Whether the configurations depend on the call."""
        return self.tuner.early_config_prune is not None or self.tuner.perf_model is not None

    def with_heuristics(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """`kwargs`, with what the heuristics above the tuner add: to Triton's tuner they are arguments like others."""
        for values in self.outer:
            for name, value in values.items():
                kwargs = {**kwargs, name: value({**self.named(args), **kwargs})}
        return kwargs

    def named(self, args: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.arguments, args, strict=False))

    def allowed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], grid: Any) -> tuple[int, ...]:
        """The places of the configurations that `prune_configs_by` leaves for a call, ascending.

        Raises OpError where none of them is left.
        """
        if not self.prunes:
            return tuple(range(len(self.configs)))
        self.tuner.nargs = self.named(args)
        try:
            left = self.tuner.prune_configs({**kwargs, "grid": grid, "warmup": False})
        finally:
            self.tuner.nargs = None
        places = tuple(place for place, config in enumerate(self.configs) if config in left)
        if not places:
            raise OpError(f"{self.function.__name__}: its prune_configs_by leaves none of its configurations")
        return places

    def grid(self, grid: Any, place: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...] | str:
        """The grid of a call under a configuration as numbers, or why it has none."""
        try:
            return tuple(map(int, grid(self._meta(place, args, kwargs)) if callable(grid) else grid))
        except Exception as error:  # noqa: BLE001 - a user's own function; that configuration is refused with it
            return f"its grid fails: {type(error).__name__}: {error}"

    def _meta(self, place: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a grid function is given: every parameter of the kernel."""
        meta = {**self.defaults, **self.named(args), **kwargs, **self.configs[place].all_kwargs()}
        for values in self.inner:
            for name, value in values.items():
                meta[name] = value(dict(meta))
        return {name: value for name, value in meta.items() if name in self.arguments}

    def launch(
        self, place: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], grid: Any, *, reset: bool = False
    ) -> Any:
        """Run the kernel under a configuration, as Triton does once it has chosen it.

        reset: also the pre_hook of the kernel's own that Triton calls before each timed run.
        """
        config = self.tuner.best_config = self.configs[place]
        if reset or config.pre_hook is not None:
            full = {**self.named(args), **kwargs, "grid": grid, "warmup": False, **config.all_kwargs()}
            if config.pre_hook is not None:
                config.pre_hook(full)
            if reset and self.tuner.user_defined_pre_hook:
                self.tuner.pre_hook(full)
        return self.tuner.fn.run(*args, grid=grid, warmup=False, **kwargs, **config.all_kwargs())


def _heuristics(kernel: Any) -> tuple[tuple[Values, ...], Any]:
    """The heuristics on top of a kernel, outermost first, and what is below them."""
    found: list[Values] = []
    while hasattr(kernel, "values") and hasattr(kernel, "fn") and not hasattr(kernel, "configs"):
        found.append(kernel.values)
        kernel = kernel.fn
    return tuple(found), kernel


def _params(config: Any) -> Params:
    """A configuration as a tactic's parameters; what is no number, text or boolean is written as text."""
    return tuple(
        (name, value if isinstance(value, bool | int | float | str) else str(value))
        for name, value in config.all_kwargs().items()
    )
