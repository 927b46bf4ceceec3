"""From what was typed to a problem, a tactic that its op offers, and the values that a key leaves open."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from tunebook.errors import UsageError
from tunebook.ops import OpSpec, example_options
from tunebook.records import DEFAULT, Problem, Scalar, Tactic

#: So many names are offered in place of one that nothing has.
NAMED = 3


def problems_named(text: str, keys: Iterable[str]) -> list[str]:
    """The problem with this key, else all whose key contains the text."""
    keys = set(keys)
    return [text] if text in keys else sorted(key for key in keys if text in key)


def find_tactic(text: str, spec: OpSpec, problem: Problem) -> Tactic:
    """The tactic of that name. Raises UsageError where the op does not offer it for `problem` here, and says what is near."""
    try:
        tactic = Tactic.parse(text)
    except ValueError as error:
        raise UsageError(f"{error}; {_near(text, spec, problem)}") from None
    if tactic == DEFAULT:
        return tactic
    runner = spec.runners.get(tactic.runner)
    why = runner.requirement.reason() if runner is not None else None
    if why is not None:
        raise UsageError(
            f"runner {tactic.runner} of op {spec.name} cannot run here: {why}; {_near(text, spec, problem)}"
        )
    if runner is None or not runner.offers(tactic):
        raise UsageError(f"op {spec.name} offers no tactic {text}; {_near(text, spec, problem)}")
    refusal = runner.refusal(tactic, problem)
    if refusal is not None:
        raise UsageError(f"{tactic.name} does not fit {problem}: {refusal}; {_near(text, spec, problem)}")
    return tactic


def _near(text: str, spec: OpSpec, problem: Problem) -> str:
    names = [DEFAULT.name, *_offered(spec, problem)]
    return f"near are {', '.join(difflib.get_close_matches(text, names, n=NAMED, cutoff=0.0))}"


def _offered(spec: OpSpec, problem: Problem) -> Iterator[str]:
    """The names of the tactics that a tuning would try."""
    for runner in spec.runners.values():
        if runner.requirement.reason() is None:
            for tactic in runner.space_of(problem):
                if runner.refusal(tactic, problem) is None:
                    yield tactic.name


def choices(given: Sequence[str], spec: OpSpec, problem: Problem) -> tuple[dict[str, int], dict[str, Scalar]]:
    """Sizes of the dynamic dimensions, the bucket's own unless `given` (``M=13``) says otherwise, and options of the example.

    Raises UsageError for a name that is neither, a value of another kind, and a size of another bucket.
    """
    sizes: dict[str, int] = {dim.name: dim.size for dim in problem.dims}
    known, options = example_options(spec), dict[str, Scalar]()
    for text in given:
        name, equals, _ = text.partition("=")
        if not equals or (name not in sizes and name not in known):
            names = ", ".join([*sizes, *known]) or "nothing"
            raise UsageError(f"--set {text}: write NAME=VALUE; of op {spec.name} can be set {names}")
        if name in sizes:
            sizes[name] = _size(text, spec, problem)
        else:
            options[name] = _value(text, known[name])
    return sizes, options


def _size(text: str, spec: OpSpec, problem: Problem) -> int:
    name, _, value = text.partition("=")
    (dim,) = (dim for dim in problem.dims if dim.name == name)
    size, rule = int(value) if value.isdecimal() and len(value) < 19 else 0, spec.shape.by_name.get(name)
    if rule is None or rule.of(size) != dim.size:
        raise UsageError(f"--set {text}: {value!r} is no size of the bucket {dim}; leave it out for {dim.size}")
    return size


def _value(text: str, default: Scalar) -> Scalar:
    """The value in the kind of the option's default."""
    value, kind = text.partition("=")[2], type(default)
    try:
        return {"true": True, "false": False}[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise UsageError(f"--set {text}: {value!r} is not such a value as {default!r}, the default") from None
