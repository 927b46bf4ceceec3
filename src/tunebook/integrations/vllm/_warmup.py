"""vLLM's ``flashinfer_autotune`` with tunebook in the place of FlashInfer's tuning: vLLM's own function runs, unchanged.

While it runs, three names that it looks up mean something else: ``vllm.utils.flashinfer.autotune`` gives a block of one
session, and the functions that name and look at its cache file tell which file that is.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunebook.envs import envs
from tunebook.errors import EnvironmentVariableError, TunebookError
from tunebook.integrations.vllm._logs import join_vllms, logger, say

if TYPE_CHECKING:
    from tunebook.integrations.flashinfer import Session

#: What is called or replaced of vLLM's module.
NEEDED = ("flashinfer_autotune", "resolve_flashinfer_autotune_file", "_all_ranks_have_matching_cache")
#: The attribute that tells a function of ours from vLLM's.
MARK = "_of_tunebook"
#: How a line begins that tells why vLLM's warm-up is as ever.
WITHOUT = "FlashInfer tunes without tunebook"


def under_tunebook(module: ModuleType) -> Callable[..., None]:
    """What takes the place of ``flashinfer_autotune`` in `module`, which is vLLM's ``kernel_warmup``."""
    original = module.flashinfer_autotune

    @functools.wraps(original)
    def flashinfer_autotune(*args: Any, **kwargs: Any) -> None:
        if not _is_on():
            original(*args, **kwargs)
            return
        join_vllms()
        warmup = Warmup(module)
        with warmup.standing_in():
            original(*args, **kwargs)
            if warmup.owes:
                original(*args, **kwargs)

    setattr(flashinfer_autotune, MARK, True)
    return flashinfer_autotune


def _is_on() -> bool:
    try:
        return envs.TUNEBOOK_FLASHINFER.get()
    except EnvironmentVariableError as error:
        say(WITHOUT, error)
        return False


class Warmup:
    """One call of ``flashinfer_autotune``: a session over its blocks.

    Whatever goes wrong in the session is one line of the log; from then on the blocks are FlashInfer's, on every rank.
    """

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._wrappers = importlib.import_module("vllm.utils.flashinfer")
        self._tune = self._wrappers.autotune
        self._resolve = module.resolve_flashinfer_autotune_file
        self._match = module._all_ranks_have_matching_cache
        #: where everything is tuned afresh: the name that vLLM was given, and the one that it would have taken
        self._instead: tuple[Path, Path] | None = None
        self._file: Path | None = None
        self._session: Session | None = None
        self._lost: Exception | None = None
        #: with other ranks: has FlashInfer know what it knew before the first block, which was the same on all of them
        self._forget: Callable[[], None] | None = None
        self._entered = False
        self._depth = 0

    @property
    def owes(self) -> bool:
        """Whether the session failed after it had blocks: FlashInfer has not seen their calls."""
        return self._entered and self._lost is not None

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """In the block vLLM's names are ours."""
        names = vars(self._module)
        names.update(resolve_flashinfer_autotune_file=self._named, _all_ranks_have_matching_cache=self._looked_at)
        vars(self._wrappers)["autotune"] = self._block
        try:
            yield
        finally:
            vars(self._wrappers)["autotune"] = self._tune
            names.update(resolve_flashinfer_autotune_file=self._resolve, _all_ranks_have_matching_cache=self._match)
            if self._session is not None:
                with _told("the run file was not ended"):
                    self._session.close()

    def _named(self, *args: Any, **kwargs: Any) -> Path:
        """vLLM's file, or where everything is tuned afresh one of this start alone, which is not there yet."""
        file = Path(self._resolve(*args, **kwargs))
        with self._minding():
            from tunebook.integrations.flashinfer import beside_runs
            from tunebook.store import Policy, resolve_policy

            if self._instead is None and resolve_policy().policy is Policy.FRESH:
                self._instead = beside_runs(file, datetime.now(), "_*"), file
        return file if self._instead is None else self._instead[0]

    def _looked_at(self, path: Path, *args: Any, **kwargs: Any) -> bool:
        self._file = Path(path)
        return bool(self._match(path, *args, **kwargs))

    @contextmanager
    def _block(self, tune_mode: bool = True, cache: Any = None, **given: Any) -> Iterator[None]:
        """What ``vllm.utils.flashinfer.autotune`` gives. What the block raises goes on as it is, and tunes nothing."""
        with ExitStack() as ours:
            if not tune_mode or cache is not None or not self._enter(ours, given):
                with self._tune(tune_mode, cache, **given):
                    yield
                return
            self._entered = True
            self._depth += 1
            try:
                yield
            except BaseException as raised:
                _abandon(ours.pop_all(), raised)
                raise
            finally:
                self._depth -= 1
            self._leave(ours.pop_all())

    def _enter(self, ours: ExitStack, given: dict[str, Any]) -> bool:
        """Whether every rank is in a block of its session."""
        if self._session is None and self._lost is None:
            with self._minding():
                self._session = self._new_session()
        if not self._agreed():
            return False
        assert self._session is not None
        with self._minding():
            if self._forget is None:
                from tunebook.integrations.flashinfer import known

                self._forget = known(self._session.package.tuner)
            ours.enter_context(self._session.autotune(**given))
        if self._agreed():
            return True
        assert self._lost is not None
        _abandon(ours.pop_all(), self._lost)
        return False

    def _leave(self, ours: ExitStack) -> None:
        """Tune, unless there is no use in it any more; after the outermost block, keep what FlashInfer has now."""
        if self._lost is not None:
            _abandon(ours, self._lost)
        else:
            with self._minding():
                ours.close()
        if self._depth == 0 and self._agreed():
            with _told("vLLM's file was not written"):
                self._keep()

    def _new_session(self) -> Session:
        from tunebook.integrations.flashinfer import Session
        from tunebook.integrations.vllm._files import cache_beside, named_as_before

        if self._file is None:
            raise TunebookError("vLLM's warm-up has not looked for its cache file; was it changed?")
        file = self._file if self._instead is None else named_as_before(self._file, *self._instead)
        return Session(cache=cache_beside(file))

    def _keep(self) -> None:
        """Write vLLM's file, as vLLM would do next: there an error would end the engine, and other runners' entries come back."""
        from tunebook.integrations.vllm._files import write_configs
        from tunebook.store import Policy

        session, file = self._session, self._file
        assert session is not None
        assert file is not None
        tuner, outcome = session.package.tuner, session.outcome
        changed, tuner._dirty = tuner._dirty, False
        if session.policy is not Policy.REPLAY and changed:
            problem = write_configs(session.package, file, session.installed, tuned=bool(outcome.fresh))
            if problem is not None:
                logger.warning("%s", problem)
            else:
                logger.info("FlashInfer's configurations are in %s", file)
        logger.info(
            "FlashInfer's warm-up: %d problems, %d tuned in %.1f s, %d served from the cache, %d left out%s",
            outcome.seen,
            len(outcome.fresh),
            outcome.seconds,
            outcome.cached,
            outcome.left_out,
            f"; run {session.run}" if session.run is not None else "",
        )

    def _agreed(self) -> bool:
        """Whether the session goes on; not where it does not on any rank of FlashInfer's group. Every rank asks in step."""
        well = self._lost is None
        with self._minding():
            group = importlib.import_module("flashinfer.autotuner").get_autotune_process_group()
            if group is not None and group.size() > 1:
                from torch.distributed import all_gather_object

                answers: list[bool | None] = [None] * group.size()
                all_gather_object(answers, well, group=group)
                if not all(answers):
                    forget, self._forget = self._forget, None
                    if forget is not None:
                        forget()  # one that went on alone may have installed more: ranks that differ hang
                    raise TunebookError("another rank could not go on")
        return self._lost is None

    @contextmanager
    def _minding(self) -> Iterator[None]:
        """What fails in the block is said, once a start, and no more."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the engine goes on without tunebook
            if self._lost is None:
                self._lost = error
                say(WITHOUT, error)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What fails in the block is said, and changes nothing else."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the engine goes on
        say(what, error)


def _abandon(ours: ExitStack, why: BaseException) -> None:
    """Leave a block of the session without tuning; ranks that wait for this one are told why."""
    with suppress(Exception):
        ours.__exit__(type(why), why, why.__traceback__)
