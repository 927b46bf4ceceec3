"""Finding out what a module of a model computes, by running its class's forward on a stand-in with small random weights."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Generic, TypeVar

logger = logging.getLogger("tunebook.engine")


T = TypeVar("T")


class Findings(Generic[T]):
    """What was found out about modules, from when they are looked at until they are attached."""

    def __init__(self, find: Callable[[Any], T | None]) -> None:
        self._find = find
        self._found: weakref.WeakKeyDictionary[Any, T] = weakref.WeakKeyDictionary()

    def look(self, module: Any) -> bool:
        """Find out anew; False where the module is not of the kind."""
        self._found.pop(module, None)
        found = self._find(module)
        if found is not None:
            self._found[module] = found
        return found is not None

    def of(self, module: Any) -> T:
        """What `look` found out."""
        return self._found[module]


@functools.cache
def default_version(what: str) -> str:
    """The version of a default that is a module of Transformers. Reading a distribution's metadata takes milliseconds."""
    return f"transformers {what} {version('transformers')}"


def stand_in(
    module: Any, *, parameters: Mapping[str, Any] | None = None, children: Mapping[str, Any] | None = None
) -> Any:
    """A shallow copy of a module with other parameters, or with plain functions for children; the module is untouched."""
    copied = copy.copy(module)
    if parameters is not None:
        copied.__dict__["_parameters"] = dict(parameters)
    if children is not None:
        copied.__dict__["_modules"] = dict(children)
    return copied


def own_forward(module: Any) -> Callable[..., Any] | None:
    """The forward of a module's class, or None where somebody has put another on the module itself."""
    if "forward" in module.__dict__:
        return None
    forward: Callable[..., Any] = type(module).forward
    return forward


def first_parameter(module: Any) -> str:
    """What the class's forward calls its first argument."""
    return list(inspect.signature(type(module).forward).parameters)[1]


def asked(question: Callable[[], bool], what: str) -> bool:
    """What `question` says; False where it raises: a module that is not of the form that it asks about."""
    import torch

    try:
        with torch.inference_mode():
            return question()
    except Exception as error:  # noqa: BLE001 - a module of another form raises whatever it likes
        logger.debug("%s is left as it is: %s: %s", what, type(error).__name__, error)
        return False
