"""Where tunebook's log lines go in an engine: vLLM gives its own loggers a handler, and no other."""

from __future__ import annotations

import logging

from tunebook.envs import envs
from tunebook.errors import EnvironmentVariableError, in_one_line

logger = logging.getLogger("tunebook.vllm")


def join_vllms() -> None:
    """tunebook's lines stand among vLLM's from now on, unless they go somewhere already. vLLM sets its loggers up late."""
    ours = logging.getLogger("tunebook")
    if not ours.hasHandlers() and (handlers := logging.getLogger("vllm").handlers):
        for handler in handlers:
            ours.addHandler(handler)
        try:
            ours.setLevel(envs.TUNEBOOK_LOG_LEVEL.get())
        except EnvironmentVariableError:  # who tunes names it
            ours.setLevel(logging.INFO)


def say(what: str, error: Exception) -> None:
    """One line for what went wrong, at DEBUG with where it did."""
    join_vllms()
    logger.error("%s: %s", what, in_one_line(error))
    logger.debug("what was raised", exc_info=error)
