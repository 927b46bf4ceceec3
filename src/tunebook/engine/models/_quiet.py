"""Keeps Transformers from printing bars and notes of its own while a model is loaded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("tunebook.engine")


@contextmanager
def quiet() -> Iterator[None]:
    """Let Transformers report errors only inside the block, unless tunebook logs at DEBUG, and restore its settings."""
    if _log.isEnabledFor(logging.DEBUG):
        yield
        return
    from transformers.utils import logging as theirs

    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
