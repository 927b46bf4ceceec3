"""What SGLang calls as a plug-in, and what a user calls: from then on SGLang's FlashInfer autotune step uses tunebook."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

from tunebook.envs import envs
from tunebook.errors import UsageError, in_one_line

logger = logging.getLogger("tunebook.sglang")

_KNOWN = re.compile(r"0\.5\.23(\.post[0-9]+)?(\+[A-Za-z0-9.]+)?")
KNOWN = "0.5.23"
AUTOTUNE = "sglang.srt.model_executor.runner.flashinfer_autotune"
SCHEDULER = "sglang.srt.managers.scheduler"
#: What is hooked or called of SGLang's module, and which parameters it has there.
_NEEDED = {
    "run_flashinfer_autotune_forward": ("model_runner", "forward_fn", "run_lm_head"),
    "maybe_flashinfer_autotune_extend": ("runner", "decode_num_tokens"),
    "flashinfer_autotune_cache_path": ("model_runner",),
}


def plugin() -> None:
    """SGLang's entry point, called in each of its processes. Nothing unless TUNEBOOK_FLASHINFER is on.

    Nothing either in a process that has not imported the step, which runs no model: importing it there would be heavy. Raises
    nothing: why it cannot be done is one line of the log, and FlashInfer tunes.
    """
    try:
        if envs.TUNEBOOK_FLASHINFER.get() and AUTOTUNE in sys.modules:
            _register()
    except Exception as error:  # noqa: BLE001 - the engine goes on without tunebook
        logger.error("FlashInfer tunes without tunebook: %s", in_one_line(error))


def enable() -> None:
    """Let SGLang's FlashInfer autotune step use tunebook, in this process and in those that it starts.

    It sets TUNEBOOK_FLASHINFER, which the engine's processes inherit. A second call changes nothing. Raises UsageError where
    SGLang cannot be imported, and for a version that is not known.
    """
    _register()
    importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()
    envs.TUNEBOOK_FLASHINFER.set(True)


def disable() -> None:
    """From now on FlashInfer tunes by itself again, in this process and in those that it starts."""
    envs.TUNEBOOK_FLASHINFER.set(False)


def _register() -> None:
    """Ask SGLang to put hooks around its functions, once."""
    _check()
    from tunebook.integrations.sglang import _step

    hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
    around, before = hooks.HookType.AROUND, hooks.HookType.BEFORE
    wanted: list[tuple[str, Callable[..., Any], Any]] = [
        (f"{AUTOTUNE}.run_flashinfer_autotune_forward", _step.forward_step, around),
        (f"{AUTOTUNE}.maybe_flashinfer_autotune_extend", _step.extend_step, around),
    ]
    if SCHEDULER in sys.modules:  # an engine's process: all its steps are over when it begins to serve
        wanted.append((f"{SCHEDULER}.Scheduler.run_event_loop", _step.finish_start, before))
    for target, hook, kind in wanted:
        if all(known is not hook for _, known, _ in hooks.HookRegistry._hooks.get(target, ())):
            hooks.HookRegistry.register(target, hook, kind)


def _check() -> None:
    """Raises UsageError unless the installed SGLang is one that is known, and as it was released."""
    try:
        version = importlib.metadata.version("sglang")
        module = importlib.import_module(AUTOTUNE) if _KNOWN.fullmatch(version) else None
    except ImportError as error:  # PackageNotFoundError is one
        raise UsageError(f"SGLang cannot be imported ({error}); install it: pip install 'sglang=={KNOWN}'") from error
    if module is None:
        raise UsageError(f"SGLang {version} is not one that tunebook knows ({KNOWN}); install that one")
    for name, parameters in _NEEDED.items():
        function = getattr(module, name, None)
        if function is None:
            raise UsageError(f"SGLang {version}: {AUTOTUNE} has no {name}; it was changed")
        if tuple(inspect.signature(function).parameters) != parameters:
            raise UsageError(f"SGLang {version}: {name} of {AUTOTUNE} takes other arguments; it was changed")
