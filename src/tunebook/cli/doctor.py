"""`tunebook doctor`: what this machine offers, which runners can run and why others cannot, and whether results can be kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tunebook._figures import size
from tunebook.cli._options import Json
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean


def doctor(
    threads: Annotated[
        int | None, typer.Option(help="The thread count to look at. Default: TUNEBOOK_THREADS, else torch's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check device, ISA, libraries, runners, models, and the cache's place. Exit code 1 if results cannot be kept."""
    with edge():
        found = examine(threads)
        if as_json:
            print_json(found)
        else:
            _print(found)
    if found["cache"]["problem"]:
        raise SystemExit(1)


def examine(threads: int | None = None) -> dict[str, Any]:
    """Everything that doctor reports, as plain values."""
    import tunebook.kernels  # noqa: F401 - declares the shipped ops
    from tunebook.cli._search_path import described
    from tunebook.devices import device_of
    from tunebook.dispatch import OPS
    from tunebook.engine import models, set_threads
    from tunebook.envs import envs
    from tunebook.store import Location, resolve_policy
    from tunebook.store.search_path import read_search_path

    set_threads(threads)
    device = device_of("cpu")
    environment = device.environment()
    location = Location.of(environment, None)
    policy = resolve_policy(True, None)
    return {
        "environment": {"digest": environment.digest, "hard": environment.hard, "soft": environment.soft},
        "free_memory": device.free_memory(),
        "runners": [
            {
                "op": op.name,
                "runner": runner.name,
                "tactics": len(runner.combinations),
                "version": runner.version,
                "unavailable": runner.requirement.reason(),
            }
            for op in OPS.values()
            for runner in op.runners.values()
        ],
        "models": [
            {"name": name, "about": models.describe(name), "unavailable": models.unavailable(name)}
            for name in models.names()
        ],
        "cache": {
            "path": str(location.cache),
            "exists": location.cache.exists(),
            "problem": unwritable(location.cache.parent),
        },
        "search_path": described(read_search_path(environment, loud=False)),
        "policy": {
            "policy": policy.policy.value,
            "why": policy.why,
            "warning": _fresh_warning(policy.policy.value, policy.why),
        },
        "budget_s": envs.TUNEBOOK_BUDGET_S.get(),
    }


def _fresh_warning(policy: str, why: str) -> str | None:
    """What leaving the switch off costs: the seconds of the last fresh run of this environment, where there is one."""
    if policy != "fresh":
        return None
    last = _last_fresh_seconds()
    cost = f"the last one took {last:.0f} s" if last is not None else "up to the whole budget"
    return f"cache reuse is off ({why}): every start tunes afresh, {cost}; unset it in production"


def _last_fresh_seconds() -> float | None:
    from tunebook.devices import device_of
    from tunebook.errors import StoreError
    from tunebook.store import Location, read_run

    runs = Location.of(device_of("cpu").environment(), None).runs
    for path in sorted(runs.glob("*.jsonl"), reverse=True)[:20] if runs.is_dir() else ():
        try:
            run = read_run(path)
        except StoreError:
            continue
        if run.header.policy == "fresh" and run.footer is not None:
            return run.footer.seconds
    return None


def unwritable(directory: Path) -> str | None:
    """Why nothing can be kept in `directory` (made if need be), or None."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"tunebook")
    except OSError as error:
        return f"{directory}: {error.strerror or error}; set TUNEBOOK_CACHE_DIR to a directory that can be written"
    return None


def _print(found: dict[str, Any]) -> None:
    environment = found["environment"]
    table(
        f"Environment {environment['digest']}",
        ("field", "value"),
        [*environment["hard"].items(), *environment["soft"].items(), ("free memory", size(found["free_memory"]))],
    )
    table(
        "Runners",
        ("op", "runner", ">tactics", "available", "version"),
        [
            (
                r["op"],
                r["runner"],
                str(r["tactics"]),
                "yes" if r["unavailable"] is None else f"no: {r['unavailable']}",
                r["version"],
            )
            for r in found["runners"]
        ],
    )
    table(
        "Models",
        ("name", "available", "about"),
        [
            (m["name"], "yes" if m["unavailable"] is None else f"no: {m['unavailable']}", m["about"])
            for m in found["models"]
        ],
    )
    cache, policy = found["cache"], found["policy"]
    say()
    say(
        f"cache:  {cache['path']} ({'exists' if cache['exists'] else 'not there yet'}, {cache['problem'] or 'writable'})"
    )
    for one in found["search_path"]:
        _print_shipped(one)
    say(f"policy: {policy['policy']} ({policy['why']})")
    if policy["warning"]:
        say(f"warning: {policy['warning']}")


def _print_shipped(one: dict[str, Any]) -> None:
    """A line for an entry of the search path, and one for each of its entries that cannot be served."""
    if one["problem"] is not None:
        say(f"path:   {clean(one['problem'])}")
        return
    say(f"path:   {clean(one['path'])} ({one['verdicts']} verdicts, {one['plans']} plans, read only)")
    for miss in one["misses"]:
        say(f"        {clean(miss)}")
