"""Options that several commands have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="The thread count of the environment that is meant. Default: TUNEBOOK_THREADS, else what is there."
    ),
]
WordsCache: TypeAlias = Annotated[
    Path | None, typer.Option(help="For latest, previous and cache: this cache. Default: this environment's.")
]
PinsCache: TypeAlias = Annotated[
    Path | None, typer.Option(help="The cache beside which the pins are kept. Default: this environment's.")
]
