"""What vLLM calls as a plug-in, and what a user calls: from then on vLLM's FlashInfer warm-up uses tunebook."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.integrations.vllm._imports import after_import
from tunebook.integrations.vllm._logs import say
from tunebook.integrations.vllm._warmup import MARK, NEEDED, WITHOUT, under_tunebook

_KNOWN = re.compile(r"0\.32(\.[0-9]+)*(\.post[0-9]+)?(\+[A-Za-z0-9.]+)?")
KNOWN = "0.32"
WARMUP = "vllm.model_executor.warmup.kernel_warmup"


def plugin() -> None:
    """vLLM's entry point, called in each of its processes, maybe several times. Nothing unless TUNEBOOK_FLASHINFER is on.

    Raises nothing, since that would end the engine: why it cannot be done is one line of the log.
    """
    try:
        if envs.TUNEBOOK_FLASHINFER.get():
            _await_warmup()
    except Exception as error:  # noqa: BLE001 - the engine goes on without tunebook
        say(WITHOUT, error)


def enable() -> None:
    """Let vLLM's FlashInfer warm-up use tunebook, in this process and in those that it starts.

    It sets TUNEBOOK_FLASHINFER, which an engine's processes inherit. A second call changes nothing. Raises UsageError where
    vLLM cannot be imported, and for a version that is not known.
    """
    _await_warmup()
    envs.TUNEBOOK_FLASHINFER.set(True)


def disable() -> None:
    """From now on FlashInfer tunes without tunebook again, in this process and in those that it starts."""
    envs.TUNEBOOK_FLASHINFER.set(False)


def _await_warmup() -> None:
    """Take vLLM's function over once there is one."""
    try:
        version = str(getattr(importlib.import_module("vllm"), "__version__", "unknown"))
    except ImportError as error:
        raise UsageError(f"vLLM cannot be imported ({error}); install it: pip install 'vllm>=0.32,<0.33'") from error
    if not _KNOWN.fullmatch(version):
        raise UsageError(f"vLLM {version} is not one that tunebook knows ({KNOWN}); install one of these")
    after_import(WARMUP, _take_over)


def _take_over(module: ModuleType) -> None:
    lacking = [name for name in NEEDED if not callable(getattr(module, name, None))]
    if lacking:
        say(WITHOUT, UsageError(f"{module.__name__} has no {lacking[0]}: this vLLM is not {KNOWN} as it was released"))
    elif not hasattr(module.flashinfer_autotune, MARK):
        vars(module)["flashinfer_autotune"] = under_tunebook(module)
