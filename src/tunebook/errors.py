"""Every error that tunebook raises on purpose, under one root.

    TunebookError
    ├── EnvironmentVariableError   a variable's value cannot be used
    ├── UsageError (ValueError)    arguments that contradict each other or name nothing
    ├── OpError                    an op or a runner is declared or called wrongly
    ├── StoreError                 a file cannot be read or kept
    ├── ModelError                 a model cannot be loaded, attached or run
    ├── RankError                  another rank failed, died, or cannot tune together with this one
    └── UserCodeError              a file given with --with fails to import

A message names the thing, the value and the remedy: it is printed alone, without a traceback, by the command line.
A tactic that fails is not an error: it is data (`tunebook.records.Rejected`).
"""

from __future__ import annotations


class TunebookError(Exception):
    """The root: catch it to catch everything that tunebook raises on purpose."""


class EnvironmentVariableError(TunebookError):
    """A variable's value cannot be used; the message names variable, value and the accepted forms."""


class UsageError(TunebookError, ValueError):
    """Arguments that contradict each other, or that name something that does not exist."""


class OpError(TunebookError):
    """An op or a runner is declared or called wrongly."""


class StoreError(TunebookError):
    """A file cannot be read or kept; the message names the path."""


class ModelError(TunebookError):
    """A model cannot be loaded, attached or run."""


def in_one_line(error: BaseException) -> str:
    """What an error says, for one line of a log: with its class, unless it is tunebook's own, whose words suffice."""
    text = str(error) if isinstance(error, TunebookError) else f"{type(error).__name__}: {error}"
    return text.replace("\n", "; ")


class RankError(TunebookError):
    """Of several ranks that tune together one failed, died or fell silent; every other one raises this.

    The message names it and its stage; `rank` is its rank in the whole job (-1: not known), `stage` what it was doing.
    """

    def __init__(self, message: str, *, rank: int, stage: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.stage = stage


class UserCodeError(TunebookError):
    """A file given by the user fails to import; the message names the file, the line and the cause."""
