"""A miss: something in a file that cannot be served, said in one line. Data, not an exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MissKind = Literal["absent", "empty", "unreadable", "not JSON", "schema", "environment", "entry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """Why a file, or one entry of it, is not served.

    - ``absent``, ``empty``, ``unreadable``, ``not JSON``, ``schema``, ``environment``: nothing of the file is served.
    - ``entry``: this one verdict, plan or line is not; the rest is.

    `where` names the file and, for an entry, its key or line; `detail` names the field and what is wrong with it. Both
    are printable and short, whatever the file held.
    """

    kind: MissKind
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.detail}"
