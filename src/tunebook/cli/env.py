"""`tunebook env`: the environment variables, their values, and where each comes from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tunebook._envpage import markdown
from tunebook.cli._options import Json
from tunebook.cli._output import print_json, say
from tunebook.cli._tables import table
from tunebook.envs import envs


def env(
    as_json: Json = False,
    page: Annotated[bool, typer.Option("--markdown", help="Print the reference page.")] = False,
) -> None:
    """List the environment variables that tunebook reads: type, default, current value and its source."""
    if page:
        print(markdown(), end="")
        return
    rows, misspelt = envs.rows(), envs.misspelt()
    if as_json:
        print_json({"variables": [asdict(row) for row in rows], "misspelt": misspelt})
        return
    table(
        "Environment variables",
        ("name", "type", "default", "value", "source"),
        [(row.name, row.type, row.default_text, row.value_text, row.source) for row in rows],
    )
    for row in rows:
        if row.error:
            say(f"error: {row.error}")
    for name, nearest in misspelt.items():
        say(f"unknown variable {name}" + (f"; did you mean {nearest}?" if nearest else ""))
