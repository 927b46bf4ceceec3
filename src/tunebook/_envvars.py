"""How an environment registry works: a field declares a variable, a mapping of names to texts holds its value.

The mapping is passed in (`tunebook.envs` passes the process's own), so nothing here reads the process environment. All
state is in the mapping too: what is set here is seen by the processes started from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NoReturn, Required, TypedDict, TypeVar, Unpack, cast, overload

from tunebook.errors import EnvironmentVariableError

logger = logging.getLogger("tunebook.envs")

T = TypeVar("T")  # what a text is parsed to
D = TypeVar("D")  # the default: T again, or None for a variable that may be absent
V = TypeVar("V")  # T | D, what a reader gets

DEFAULT = "default"
NONE = "none"


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name that a variable is read from when its own name is not set.

    `owner` names the project that the variable belongs to; None: it is our own (an older name, for example). What is
    put there for its owner must not stop us, so a bad value is one warning and the default. `deprecated`: its use is
    answered with a warning that names the replacement.
    """

    name: str
    owner: str | None = None
    deprecated: bool = False

    @property
    def foreign(self) -> bool:
        return self.owner is not None


@dataclass(frozen=True, slots=True)
class Computed(Generic[D]):
    """A default that only the platform knows, found late; `text` says in words what it is."""

    find: Callable[[], D]
    text: str


@dataclass(frozen=True, slots=True)
class Reading(Generic[V]):
    """One look at a variable: where its value comes from, and the value or the message of why it cannot be used."""

    source: str
    value: V | None
    error: str | None = None


class Common(TypedDict, total=False):
    """The arguments that every kind of field takes by keyword; `EnvField` says what they mean."""

    help: Required[str]
    aliases: Sequence[Alias]
    deprecated: str


class EnvField(Generic[T, D]):
    """The declaration of one variable. On an instance of its registry it reads as the `Variable` to call.

    A field whose default is None accepts the word `none` as well. `deprecated` says what replaces the variable. Blank
    text counts as unset everywhere, and blanks around a value do not matter.
    """

    kind: ClassVar[str]
    name: str = ""

    def __init__(self, default: D | Computed[D], **common: Unpack[Common]) -> None:
        self._default = default
        self.help = common["help"]
        self.aliases = tuple(common.get("aliases", ()))
        self.deprecated = common.get("deprecated")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> EnvField[T, D]: ...
    @overload
    def __get__(self, instance: Registry, owner: type) -> Variable[T | D]: ...
    def __get__(self, instance: Registry | None, owner: type) -> EnvField[T, D] | Variable[T | D]:
        return self if instance is None else Variable(self, instance)

    def __set__(self, instance: Registry, value: object) -> NoReturn:
        raise AttributeError(f"{self.name} is a variable's declaration: use .{self.name}.set({value!r}) or .override")

    @property
    def optional(self) -> bool:
        return self._default is None

    @property
    def type_name(self) -> str:
        return f"{self.kind} or {NONE}" if self.optional else self.kind

    @property
    def accepts(self) -> str:
        """The accepted texts in words, to stand after "not" or "accepted:"."""
        return f"{self._accepts()}, or {NONE}" if self.optional else self._accepts()

    def default(self) -> D:
        return self._default.find() if isinstance(self._default, Computed) else self._default

    @property
    def default_text(self) -> str:
        """The default as it is written in an environment, or in words where it differs from platform to platform."""
        return self._default.text if isinstance(self._default, Computed) else self.render(self._default)

    def parse(self, text: str) -> T | D:
        """The value of a text that is not blank. Raises ValueError; its message is for callers inside this module."""
        text = text.strip()
        if self.optional and text.lower() == NONE:
            return self.default()
        if "\0" in text:
            raise ValueError("a NUL character")
        return self._parse(text)

    def render(self, value: T | D) -> str:
        """The text that `parse` reads as this value. Raises ValueError where there is none."""
        if value is None:
            if not self.optional:
                raise ValueError("None")
            return NONE
        text = self._render(cast("T", value))
        if not text.strip():
            raise ValueError("blank text, which counts as unset")
        return text

    def validate(self) -> None:
        """Raise TypeError if the declared default is not a value that the field itself would read."""
        if isinstance(self._default, Computed):  # known only late
            return
        try:
            sound = self.parse(self.render(self._default)) == self._default
        except ValueError:
            sound = False
        if not sound:
            raise TypeError(f"{self.name}: the default {self._default!r} is not accepted by itself ({self.accepts})")

    def _accepts(self) -> str:
        raise NotImplementedError

    def _parse(self, text: str) -> T:
        raise NotImplementedError

    def _render(self, value: T) -> str:
        return str(value)


class Variable(Generic[V]):
    """One variable of one registry: what to call on `envs.NAME`."""

    __slots__ = ("_registry", "field")

    def __init__(self, field: EnvField[Any, Any], registry: Registry) -> None:
        self.field = field
        self._registry = registry

    def get(self) -> V:
        """The value: from the own name, else the first alias that is set, else the default.

        Raises EnvironmentVariableError where the text cannot be used (a foreign alias: one warning, and passed over).
        """
        reading = self.reading()
        if reading.error is not None:
            raise EnvironmentVariableError(reading.error)
        return cast("V", reading.value)

    def source(self) -> str:
        """Where `get` looks: "default", the variable's own name, or "alias NAME". Never raises."""
        return self.reading().source

    def is_set(self) -> bool:
        """Whether the environment decides, by the own name or by an alias, and so not the default. Never raises."""
        return self.source() != DEFAULT

    def set(self, value: V) -> None:
        """Put a value into the environment under the own name. Raises EnvironmentVariableError if it cannot be used."""
        try:
            text = self.field.render(value)
            self.field.parse(text)
        except ValueError as error:
            raise EnvironmentVariableError(self._refusal(self.field.name, value)) from error
        self._registry.environ[self.field.name] = text

    def clear(self) -> None:
        """Take the own name out of the environment; an alias, which others may have set, is left and speaks again."""
        self._registry.environ.pop(self.field.name, None)

    @contextmanager
    def override(self, value: V) -> Iterator[None]:
        """The value inside the block; afterwards, exceptions included, what was there before, absence included.

        Blocks nest. The environment belongs to the process, so other threads see the value too.
        """
        environ, name = self._registry.environ, self.field.name
        before = environ.get(name)
        self.set(value)
        try:
            yield
        finally:
            if before is None:
                environ.pop(name, None)
            else:
                environ[name] = before

    def reading(self) -> Reading[V]:
        """Source and value, or source and the message of what is wrong with the text. Never raises."""
        field, say = self.field, self._registry.say_once
        text = self._registry.text(field.name)
        if text is not None:
            if field.deprecated is not None:
                say(logging.WARNING, f"{field.name} is deprecated: {field.deprecated}")
            own = self._parsed(field.name, field.name, text)
            for alias in field.aliases:
                other = self._registry.text(alias.name)
                if other is not None and self._parsed("", alias.name, other).value != own.value:
                    say(logging.INFO, f"{alias.name}={other} is not used: {field.name}={text} goes before it.")
            return own
        for alias in field.aliases:
            text = self._registry.text(alias.name)
            if text is None:
                continue
            reading = self._parsed(f"alias {alias.name}", alias.name, text)
            if reading.error is not None and alias.foreign:
                say(logging.WARNING, f"{reading.error} It belongs to {alias.owner}, so it is passed over here.")
                continue
            if alias.deprecated:
                say(logging.WARNING, f"{alias.name} is deprecated: set {field.name} instead.")
            return reading
        return Reading(DEFAULT, field.default())

    def _parsed(self, source: str, name: str, text: str) -> Reading[V]:
        try:
            return Reading(source, cast("V", self.field.parse(text)))
        except ValueError:
            return Reading(source, None, self._refusal(name, text))

    def _refusal(self, name: str, value: object) -> str:
        return (
            f"{name}={value!r} cannot be used; accepted: {self.field.accepts}. "
            f"Correct it, or unset it for the default ({self.field.default_text})."
        )

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of {self.field.name} itself is meaningless: ask {self.field.name}.get()")

    def __repr__(self) -> str:
        return f"<{self.field.name} from {self.source()}>"


class Registry:
    """A class whose `EnvField` attributes are variables of the mapping that an instance is made with."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.environ = environ
        self._said: set[str] = set()

    def __init_subclass__(cls) -> None:
        """Refuse, where it is declared, a name that is taken and a default that the variable itself would refuse."""
        names: list[str] = []
        for field in cls.fields():
            names += [field.name, *(alias.name for alias in field.aliases)]
            field.validate()
        if len(names) != len(set(names)):
            raise TypeError(f"{cls.__name__}: a name is declared twice: {sorted(names)}")

    @classmethod
    def fields(cls) -> tuple[EnvField[Any, Any], ...]:
        return tuple(value for value in vars(cls).values() if isinstance(value, EnvField))

    def variables(self) -> tuple[Variable[Any], ...]:
        return tuple(Variable(field, self) for field in self.fields())

    def text(self, name: str) -> str | None:
        """The text of a name without the blanks around it; None if it is not set or blank."""
        return self.environ.get(name, "").strip() or None

    def say_once(self, level: int, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.log(level, message)
