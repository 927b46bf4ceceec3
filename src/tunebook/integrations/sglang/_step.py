"""SGLang's autotune step with tunebook before FlashInfer: SGLang's own functions run, unchanged, in their own contexts.

Only the dummy run in the middle of them is made twice. In the first one FlashInfer's tuning waits, a session of tunebook's
collects, and tunes when the run is over. In the second one FlashInfer tunes as ever: it finds the winners, and measures what
there is none for, also what ops measure by themselves while they see it tune.
"""

from __future__ import annotations

import atexit
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook.envs import envs
from tunebook.errors import TunebookError, in_one_line
from tunebook.integrations.flashinfer import known
from tunebook.integrations.sglang._tuner import all_agree, give_way, ranks, waiting
from tunebook.store import Policy, resolve_policy

if TYPE_CHECKING:
    from tunebook.integrations.flashinfer import Session

logger = logging.getLogger("tunebook.sglang")

Forward = Callable[[], Any]


class Start:
    """One start of an engine in this process: a session over all its steps. `file` is SGLang's own, of the first step."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.session: Session | None = None
        self.lost = False

    def opened(self) -> Session | None:
        """The session; None where it cannot be had, which is said once."""
        if self.session is None and not self.lost:
            try:
                from tunebook.integrations.flashinfer import Session

                self.session = Session(cache=cache_beside(self.file))
            except Exception as error:  # noqa: BLE001 - the engine goes on without tunebook
                self.lose(error)
        return None if self.lost else self.session

    def lose(self, error: Exception) -> None:
        """Say why FlashInfer tunes alone from now on."""
        if not self.lost:
            self.lost = True
            logger.error("FlashInfer tunes without tunebook: %s", in_one_line(error))
            logger.debug("what was raised", exc_info=error)

    def close(self) -> None:
        if self.session is not None:
            try:
                self.session.close()
            except Exception as error:  # noqa: BLE001 - what it holds is kept already
                self.lose(error)


_start: Start | None = None


def finish_start(*_: Any, **__: Any) -> None:
    """All steps are over: end the run file. SGLang calls it before it serves, and Python at its exit."""
    global _start
    if _start is not None:
        ended, _start = _start, None
        ended.close()


def _start_of(model_runner: Any, file: Path) -> Start:
    """The start that a step belongs to: a draft model's to that of its target; another target begins another one."""
    global _start
    if _start is None or (not model_runner.is_draft_worker and file != _start.file):
        finish_start()
        _start = Start(file)
        atexit.unregister(finish_start)
        atexit.register(finish_start)
    return _start


def cache_beside(file: Path) -> Path:
    """``rank_tp0_pp0_dp0.json`` is SGLang's; ``rank_tp0_pp0_dp0_tunebook.json``, which SGLang never takes for one, tunebook's."""
    return file.with_name(f"{file.stem}_tunebook{file.suffix}")


class Step:
    """One step: what takes the place of its dummy run, and what is kept after it."""

    def __init__(self, model_runner: Any) -> None:
        self._runner = model_runner
        self._module = importlib.import_module("sglang.srt.model_executor.runner.flashinfer_autotune")
        self._file: Path | None = None
        self._start: Start | None = None

    def run(self, forward: Forward) -> Any:
        """Called by SGLang inside its contexts. What `forward` raises goes on as it is."""
        self._file = self._module.flashinfer_autotune_cache_path(self._runner)
        self._start = start = _start_of(self._runner, self._file)
        session = start.opened()
        if not all_agree(session is not None):
            start.lose(TunebookError("another rank cannot tune with it"))
        if session is None or start.lost:
            return forward()
        tuner = session.package.tuner
        before = known(tuner)
        result = self._tuned(session, forward)
        if not all_agree(not start.lost):
            start.lose(TunebookError("another rank could not go on"))
            if ranks() is not None:
                before()  # which was the same on all of them; a rank alone keeps what it has reached
        if session.policy is Policy.REPLAY and not start.lost:
            return result
        result = forward()
        give_way(tuner)
        return result

    def _tuned(self, session: Session, forward: Forward) -> Any:
        """The dummy run under tunebook, and what was met in it tuned; what goes wrong in tunebook is said."""
        assert self._start is not None
        raised: BaseException | None = None
        result: Any = None
        try:
            with waiting(session.package.tuner), session.autotune():
                try:
                    result = forward()
                except BaseException as error:
                    raised = error
                    raise
        except Exception as error:  # noqa: BLE001 - the engine goes on without tunebook
            if raised is not None:
                raise raised  # noqa: B904 - SGLang's own, whatever became of it on its way
            self._start.lose(error)
        outcome = session.outcome
        places = [] if session.policy is Policy.FRESH else [f"cache: {session.location.cache}"]
        logger.info(
            "FlashInfer's problems so far: %d met, %d tuned in %.1f s, %d served from the cache, %d left to FlashInfer; %s",
            outcome.seen,
            len(outcome.fresh),
            outcome.seconds,
            outcome.cached,
            outcome.left_out,
            "; ".join([*places, f"run file: {session.run or 'none'}"]),
        )
        return result

    def keep(self) -> None:
        """Have the winners in SGLang's file, which it has saved, without entries of their problems' other runners.

        These are merged back out of the former file when it is saved, and would be served before the winners.
        """
        start = self._start
        if start is None or start.session is None or start.lost or not _reuses():
            return
        session = start.session
        try:
            session.flashinfer_cache = self._file
            with session.autotune():
                pass  # a block publishes when it ends
        except Exception as error:  # noqa: BLE001 - the engine goes on without tunebook
            start.lose(error)
        finally:
            session.flashinfer_cache = None


def forward_step(original: Callable[..., Any], model_runner: Any, forward_fn: Forward, **kwargs: Any) -> Any:
    """Around ``run_flashinfer_autotune_forward``."""
    if not _is_on():
        return original(model_runner, forward_fn, **kwargs)
    step = Step(model_runner)
    with _one_switch():
        result = original(model_runner, partial(step.run, forward_fn), **kwargs)
        step.keep()
    return result


def extend_step(original: Callable[..., Any], runner: Any, **kwargs: Any) -> Any:
    """Around ``maybe_flashinfer_autotune_extend``: some models bring the run of this step with them."""
    model = runner.model_runner.model
    prefill = getattr(model, "autotune_prefill_kernels", None)
    if prefill is None or not _is_on():
        return original(runner, **kwargs)
    step = Step(runner.model_runner)

    def autotune_prefill_kernels(*args: Any, **further: Any) -> Any:
        return step.run(partial(prefill, *args, **further))

    own = vars(model).get("autotune_prefill_kernels")  # mostly a method of its class
    model.autotune_prefill_kernels = autotune_prefill_kernels
    try:
        with _one_switch():
            result = original(runner, **kwargs)
            step.keep()
    finally:
        del model.autotune_prefill_kernels
        if own is not None:
            model.autotune_prefill_kernels = own
    return result


def _is_on() -> bool:
    """Whether the variable is on now: `disable` and who clears it are heard."""
    try:
        return envs.TUNEBOOK_FLASHINFER.get()
    except TunebookError:
        return False  # the plug-in has named it


def _reuses() -> bool:
    reuses: bool = _switch().get()
    return reuses


def _switch() -> Any:
    return importlib.import_module("sglang.srt.environ").envs.SGLANG_FLASHINFER_AUTOTUNE_CACHE


@contextmanager
def _one_switch() -> Iterator[None]:
    """In the block SGLang tunes afresh where tunebook does: one of the two switches turns off both caches."""
    switch = _switch()
    try:
        fresh = resolve_policy().policy is Policy.FRESH
    except TunebookError:
        fresh = False  # the session names it
    if not fresh or not switch.get():
        yield
        return
    was_set = switch.is_set()
    switch.set(False)
    try:
        yield
    finally:
        if was_set:
            switch.set(True)
        else:
            switch.clear()
