"""What every benchmark shares: its options, its table as Markdown beside the script, its figures and goals as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass
class Result:
    """Figures by name, and the goals as (comparison, bound): ``{"decode_1": (">=", 1.2)}``."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    goals: dict[str, tuple[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def met(self) -> dict[str, bool]:
        holds = {">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b}
        return {name: holds[sign](self.figures[name], bound) for name, (sign, bound) in self.goals.items()}


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="a small model and few rounds: shows that the script works"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, goals and whether each is met")
    parser.add_argument("--threads", type=int, default=None, help="threads for torch; by default its own choice")
    return parser


def finish(result: Result, args: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Print the table, write it beside the script as Markdown (not with --quick), and the JSON where asked for."""
    table = "\n".join(
        ["| " + " | ".join(row) + " |" for row in (result.columns, ["---"] * len(result.columns), *result.rows)]
    )
    goals = "\n".join(
        f"- `{name}`: {result.figures[name]:.4g}, goal {sign} {bound:g}: {'met' if result.met()[name] else 'MISSED'}"
        for name, (sign, bound) in result.goals.items()
    )
    notes = "\n".join(f"- {note}" for note in result.notes)
    body = "\n\n".join(part for part in (table, goals, notes) if part)
    print(f"{result.title}\n\n{body}")
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(_shown(sys.argv[1:]))}".strip()
    machine = ", ".join(
        f"{key} {environment[key]}" for key in ("device", "cores", "threads", "torch") if key in environment
    )
    if not args.quick:
        name = Path(sys.argv[0]).stem + (f"_{args.model.replace('/', '_')}" if getattr(args, "model", None) else "")
        page = f"# {result.title}\n\n{datetime.now():%Y-%m-%d}; {machine}\n\n`{command}`\n\n{body}\n"
        (HERE / f"{name}.md").write_text(page, encoding="utf-8")
    if args.json:
        document = {
            "figures": result.figures,
            "goals": {name: bound for name, (_, bound) in result.goals.items()},
            "met": result.met(),
        }
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _shown(arguments: Sequence[str]) -> list[str]:
    """The command line without where things went and lie: those are paths of one machine."""
    places = ("--json", "--keep", "--vllm-python")
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith(places):
            kept.append(argument)
        skip = argument in places
    return kept
