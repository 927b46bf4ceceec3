"""What a worker process has imported of ops and their runners, and which runners no worker can run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import msgspec

from tunebook.dispatch import OPS
from tunebook.measure import Host, HostError
from tunebook.ops import OpSpec, Runner
from tunebook.tuner._isolation._messages import Load, Loaded, Source
from tunebook.tuner._isolation._sources import source_of

#: An op by its name and those of its runners: with another runner it is to be imported anew.
_Declared = tuple[str, tuple[str, ...]]


class UnfitError(Exception):
    """A tactic that no worker can run; the text says why, and what would help."""


class Imports:
    """Has `host` import the modules that declare ops and their runners, each once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loaded: dict[_Declared, dict[str, str]] = {}
        self._expected: dict[_Declared, OpSpec] = {}
        self._unfit: dict[tuple[str, str], str] = {}

    def expect(self, specs: Iterable[OpSpec]) -> None:
        """These ops will be asked for: the process that imports them starts, and nobody waits for it."""
        own: dict[_Declared, OpSpec] = {
            _declared(spec): spec
            for spec in specs
            if OPS.get(spec.name) is spec and isinstance(source_of(_module_of(spec)), Source)
        }
        if own:
            self._expected = own
            with contextlib.suppress(HostError, OSError):  # that is told where it is needed
                self._host.begin(_load_of(list(own.values())))

    def need(self, spec: OpSpec, runner: Runner) -> None:
        """Have the modules imported that declare the op and its runners. Raises UnfitError where this runner's cannot be."""
        if why := self._unfit.get((spec.name, runner.name)):
            raise UnfitError(why)
        if OPS.get(spec.name) is not spec:
            raise UnfitError("this op is declared elsewhere anew; declare it once")
        own = _module_of(spec)
        for module in (own, runner.origin):
            if isinstance(source := source_of(module), str):
                raise self.unfit(spec.name, runner.name, source)
        failed = self._load(spec)
        for module in (own, runner.origin):
            source = source_of(module)
            if isinstance(source, Source) and source.name in failed:
                raise self.unfit(spec.name, runner.name, failed[source.name])

    def unfit(self, op: str, runner: str, why: str) -> UnfitError:
        """Remember that no worker can run a runner; the error that says so."""
        self._unfit[op, runner] = why
        return UnfitError(why)

    def _load(self, spec: OpSpec) -> dict[str, str]:
        """Import all that declares the op and its runners, once; why it could not be, by the module's name."""
        key = _declared(spec)
        if key in self._loaded:
            return self._loaded[key]
        if key in self._expected:
            expected, self._expected = self._expected, {}
            with contextlib.suppress(HostError):  # one of them ends the process that imports it: then each op alone
                failed = self._import(list(expected.values()))
                self._loaded |= dict.fromkeys(expected, failed)
                return failed
        self._host.replace()  # one that runs already would not have it
        try:
            self._loaded[key] = self._import([spec])
        except HostError as error:
            self._loaded[key] = dict.fromkeys((source.name for source in _sources([spec])), str(error))
        return self._loaded[key]

    def _import(self, specs: Sequence[OpSpec]) -> dict[str, str]:
        return msgspec.json.decode(self._host.load(_load_of(specs)), type=Loaded).failed


def _declared(spec: OpSpec) -> _Declared:
    return spec.name, tuple(sorted(spec.runners))


def _sources(specs: Sequence[OpSpec]) -> tuple[Source, ...]:
    """Where ops and their runners are declared, as far as that can be imported."""
    modules = dict.fromkeys(
        module for spec in specs for module in (_module_of(spec), *(runner.origin for runner in spec.runners.values()))
    )
    return tuple(source for module in modules if isinstance(source := source_of(module), Source))


def _load_of(specs: Sequence[OpSpec]) -> bytes:
    return msgspec.json.encode(Load(sources=_sources(specs), runners=dict(map(_declared, specs))))


def _module_of(spec: OpSpec) -> str:
    return getattr(spec.function, "__module__", None) or ""
