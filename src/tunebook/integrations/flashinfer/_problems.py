"""What is collected of the calls of `choose_one`: each bucket of each op once, with what is needed to measure it later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tunebook.integrations.flashinfer._names import problem_of, runner_names
from tunebook.integrations.flashinfer._package import Package
from tunebook.records import Problem

#: A bucket that no call met counts this much of one that was met once.
UNSEEN_WEIGHT = 0.25


@dataclass(frozen=True)
class Outline:
    """What FlashInfer needs of an input that it makes anew: no memory, which may be another graph's."""

    dtype: Any
    device: Any


@dataclass
class Found:
    """One problem: an op at one of its profiles.

    `inputs` are the caller's, but for those that FlashInfer makes anew at each profile: of these an outline is held.
    `extras` is what each runner adds to its key, `nearest` the shapes in it, `calls` how many calls fell into this bucket.
    `inference`: the call was made in torch's inference mode. `recorded`: it was met while a CUDA graph was recorded alone,
    so that its inputs may never have been written.
    """

    op: str
    runners: list[Any]
    config: Any
    profile: Any
    inputs: list[Any]
    kwargs: dict[str, Any]
    extras: list[tuple[Any, ...]]
    nearest: tuple[tuple[int, ...], ...]
    problem: Problem
    inference: bool
    recorded: bool
    calls: int = 0

    @property
    def key(self) -> str:
        return self.problem.key

    @property
    def names(self) -> list[str]:
        return runner_names(self.runners)

    @property
    def weight(self) -> float:
        """What the problem is worth of the budget: its calls, by the numbers that a call reads, as it is not timed yet."""
        numbers = sum(_product(shape) for shape in self.profile.get_opt_shapes())
        return max(float(self.calls), UNSEEN_WEIGHT) * max(numbers, 1)

    def cache_keys(self, package: Package) -> list[Any]:
        """FlashInfer's key of this problem for each runner. Made anew: a runner's hash may have changed since."""
        make, shapes = package.module.AutoTuner._get_cache_key, self.profile.get_opt_shapes()
        return [
            make(self.op, runner, shapes, self.config, extras)
            for runner, extras in zip(self.runners, self.extras, strict=True)
        ]

    def tensors(self, package: Package) -> list[Any]:
        """Inputs of this profile's shapes, made by the op's own initializers; static ones are the caller's own."""
        made = list(package.tuner._prepare_input_tensors(self.profile, self.inputs))
        hook = self.config.inputs_pre_hook
        return made if hook is None else list(hook(made))

    @contextmanager
    def as_called(self) -> Iterator[None]:
        """In the block torch is in the inference mode of the call: tensors that were made in it cannot be written outside."""
        import torch

        with torch.inference_mode(self.inference), torch.no_grad():
            yield

    def made_anew(self, place: int) -> bool:
        """Whether the input at `place` is made for each profile, not the caller's own."""
        return any(hasattr(dim, "opt") for dim in self.profile.shapes[place])


@dataclass
class Problems:
    """All that was met, by problem key, in the order in which it was met; of each with the most runners that it was met with."""

    package: Package
    found: dict[str, Found] = field(default_factory=dict)
    #: by call: its configuration, which is kept alive, and its bucket
    _live: dict[Any, tuple[Any, str]] = field(default_factory=dict)
    _by_key: dict[Any, Found] = field(default_factory=dict)

    def note(
        self, op: str, runners: Sequence[Any], config: Any, inputs: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[Found]:
        """Take note of a call; what it brings that was not met before. Raises what the op's own functions raise."""
        tuner = self.package.tuner
        config = effective(tuner, config)
        shapes = tuple(tuner._get_input_sizes(inputs))
        extras = [runner.get_cache_key_extras(inputs) for runner in runners]
        call = (op, shapes, id(config), tuple(map(type, runners)), tuple(extras), is_recording())
        new: list[Found] = []
        if call not in self._live:
            new = list(self._profiles(op, runners, config, list(inputs), kwargs, extras))
            nearest = tuner._find_nearest_profile(shapes, config)
            place = self._by_key.get(_identity(op, runners, config, nearest, extras))
            self._live[call] = config, place.key if place is not None else ""
        if key := self._live[call][1]:
            self.found[key].calls += 1
        return new

    def _profiles(
        self,
        op: str,
        runners: Sequence[Any],
        config: Any,
        inputs: list[Any],
        kwargs: dict[str, Any],
        extras: list[tuple[Any, ...]],
    ) -> Iterator[Found]:
        import torch

        tuner = self.package.tuner
        inference, recorded = torch.is_inference_mode_enabled(), is_recording()
        for profile in tuner._generate_optimization_profiles(config, inputs):
            nearest = tuner._find_nearest_profile(profile.get_opt_shapes(), config)
            identity = _identity(op, runners, config, nearest, extras)
            if identity in self._by_key and not (self._by_key[identity].recorded and not recorded):
                continue
            problem = problem_of(op, runners, config, nearest, inputs, extras)
            known = self.found.get(problem.key)
            if known is not None and self._covers(known, runners, recorded):  # FlashInfer has one entry for both
                self._by_key[identity] = known
                continue
            more = (inference, recorded)
            one = Found(op, list(runners), config, profile, inputs, kwargs, extras, nearest, problem, *more)
            one.calls = known.calls if known is not None else 0
            one.inputs = [
                Outline(v.dtype, v.device) if one.made_anew(i) and v is not None else v for i, v in enumerate(inputs)
            ]
            self._by_key[identity] = self.found[problem.key] = one
            yield one

    @staticmethod
    def _covers(known: Found, runners: Sequence[Any], recorded: bool) -> bool:
        """Whether a call adds nothing to what is known of its problem: neither runners nor inputs that were written."""
        if len(known.runners) != len(runners):
            return len(known.runners) > len(runners)
        return recorded or not known.recorded

    def overshadowed(self) -> dict[str, str]:
        """Problems that were met with more runners and another first one as well, by key, with that other key.

        FlashInfer keeps an entry a runner: the winner of the few would be served where the many were asked for.
        """
        groups: dict[Any, list[Found]] = {}
        for one in self.found.values():
            groups.setdefault((one.op, one.nearest), []).append(one)
        hidden = {}
        for group in groups.values():
            for one in group if len(group) > 1 else ():
                for other in group:
                    mine, theirs = _identities(one), _identities(other)
                    if len(mine) < len(theirs) and mine & theirs:
                        hidden[one.key] = other.key
        return hidden


@contextmanager
def collecting(
    package: Package, note: Callable[[str, Sequence[Any], Any, Sequence[Any], dict[str, Any]], None]
) -> Iterator[None]:
    """Calls of `choose_one` in the block, from whatever thread, are told to `note`, and served by FlashInfer as ever.

    Not told are the calls that FlashInfer tunes itself (inside its own ``autotune(True)``), and ops that are skipped.
    """
    tuner = package.tuner
    before = vars(tuner).get("choose_one")
    # an inner block's calls are not told to the outer one
    choose = getattr(tuner.choose_one, "beneath", tuner.choose_one)
    active = True

    def choose_one(custom_op: str, runners: Any, tuning_config: Any, inputs: Any, **kwargs: Any) -> Any:
        with tuner._lock:
            if active and not tuner.is_tuning_mode and custom_op not in tuner._effective_skip_ops:
                note(custom_op, runners, tuning_config, inputs, kwargs)
        return choose(custom_op, runners, tuning_config, inputs, **kwargs)

    choose_one.beneath = choose  # type: ignore[attr-defined]
    tuner.choose_one = choose_one
    try:
        yield
    finally:
        active = False  # a block in another thread may put this one back after its own
        if vars(tuner).get("choose_one") is choose_one:
            if before is None:
                del tuner.choose_one
            else:
                tuner.choose_one = before


@contextmanager
def tuning_mode(package: Package) -> Iterator[None]:
    """FlashInfer's own tuning mode: without it a runner that ranks its first stage in `get_valid_tactics` sees one tactic."""
    with package.module.autotune(True):
        yield


def spaces(
    package: Package, one: Found, tensors: list[Any], runners: Sequence[int] | None = None
) -> dict[int, list[Any]]:
    """By the runner's place, the tactics that it offers for these tensors, without those on FlashInfer's blocklist.

    A runner that raises has its exception in the place of the list.
    """
    found: dict[int, Any] = {}
    tuner = package.tuner
    with tuning_mode(package):
        for place, runner in enumerate(one.runners):
            if runners is not None and place not in runners:
                continue
            try:
                offered = list(runner.get_valid_tactics(tensors, one.profile))
                found[place] = list(tuner._blocklist.filter(one.op, runner, offered))
            except Exception as error:  # noqa: BLE001 - a runner's own code; what it raises is data
                found[place] = error
    return found


def is_recording() -> bool:
    """Whether a CUDA graph is being recorded: nothing may be allocated then, and calls put nothing into their outputs."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def effective(tuner: Any, config: Any) -> Any:
    """The configuration as FlashInfer's `choose_one` would use it: with the buckets and the policy of the open contexts."""
    replays = getattr(tuner, "_override_cuda_graph_profile_replays", None)
    if tuner._override_tuning_buckets is not None or tuner._override_round_up or replays is not None:
        config = tuner._apply_tuning_overrides(config)
    policy = getattr(tuner, "_effective_measure_policy", None)
    return config if policy is None else tuner._apply_measure_policy(config, policy)


def _identity(op: str, runners: Sequence[Any], config: Any, nearest: Any, extras: Sequence[Any]) -> tuple[Any, ...]:
    """What tells problems apart: FlashInfer's keys, and the conditions under which it would time them."""
    policy = (config.use_cuda_graph, getattr(config, "cuda_graph_profile_replays", 1), config.use_cold_l2_cache)
    return (op, nearest, tuple(map(type, runners)), tuple(extras), policy)


def _identities(one: Found) -> set[Any]:
    return {(type(runner).__name__, str(extras)) for runner, extras in zip(one.runners, one.extras, strict=True)}


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
