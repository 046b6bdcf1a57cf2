"""Arguments as they are declared: an unknown name is refused with the nearest right one, a value by its annotation.

One mechanism for factories, settings objects (`checked`) and Dagster's configuration (`refuse_unknown`). Nothing is
coerced: the called function gets the very values that were given. Annotations are read when a call first gives a value
other than the default, so that importing costs nothing.

Pydantic's `validate_call` is not used. It looks into the fields of every dataclass and named tuple in an annotation
(Dagster's, Jinja's), copies sequences, and its messages about unions describe its own schema.
"""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from functools import cached_property, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dagster_llm_batch.errors import ConfigError

__all__ = ["annotation_text", "checked", "checked_options", "nearest_name", "refuse_unknown", "unknown_name"]

_Called = TypeVar("_Called", bound=Callable[..., Any])

_UNIONS = (Union, UnionType)
_CONTAINERS = (abc.Mapping, dict, abc.Sequence, list, set, tuple)
_NUMBERS: dict[Any, Any] = {int: Integral, float: Real, Decimal: (Decimal, Real, str)}
"""Accepted types of a number, including numpy's; `dollars` reads a Decimal from any of these, to the last digit."""

_SHOWN_CHARS = 80


def checked(called: _Called) -> _Called:
    """Decorate a function or class: ConfigError for a call with arguments other than it declares."""
    function: Any = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
    declared = _Declared(called, function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        declared.check(args, kwargs)
        return function(*args, **kwargs)

    if not isinstance(called, type):
        return call  # type: ignore[return-value]
    called.__init__ = call  # type: ignore[misc]
    return called


def checked_options(
    options: type, owner: Callable[..., Any], beside: Callable[..., Any] | None = None, without: Collection[str] = ()
) -> Callable[[_Called], _Called]:
    """Decorate a function whose `**` arguments are `Unpack[options]`, a TypedDict.

    Each option is checked, and shown by `help` and `inspect.signature`, as if it were in the argument list.

    Args:
        options: Arguments that several functions share. A TypedDict has no defaults.
        owner: The function that gets the options; their defaults are its own.
        beside: The function that gets all other `**` arguments; they are shown and checked like its own.
        without: Arguments of `beside` that the function gives itself, and does not take.
    """

    def decorate(called: _Called) -> _Called:
        function: Any = called
        signature = inspect.signature(called)
        *named, rest = signature.parameters.values()
        own = {parameter.name for parameter in named}
        defaults, kinds = inspect.signature(owner).parameters, get_type_hints(options)
        taken = {name: (kind, defaults[name].default) for name, kind in kinds.items()}
        if beside is not None:
            more, kinds = inspect.signature(beside).parameters, get_type_hints(beside)
            taken = {name: (kinds[name], more[name].default) for name in more if name not in without} | taken
        written_out = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in taken.items()
            if name not in own
        ]
        annotations = {name: kind for name, kind in function.__annotations__.items() if name != rest.name}
        annotations = {parameter.name: parameter.annotation for parameter in written_out} | annotations
        function.__signature__ = signature.replace(parameters=[*named, *written_out])
        function.__annotations__ = annotations
        call: Any = checked(called)
        # from Python 3.14 on `wraps` copies the function that makes the annotations, and not the ones set above
        call.__annotations__ = annotations
        return call  # type: ignore[no-any-return]

    return decorate


def refuse_unknown(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise ConfigError for the first name that is not a field of `owner`."""
    for name in given:
        if name not in known:
            raise ConfigError(f"{owner}: {unknown_name('field', name, known)}")


def unknown_name(noun: str, name: str, known: Collection[str]) -> str:
    """Return the message about a name that is not among the known ones."""
    near = nearest_name(name, known)
    meant = "." if near is None else f"; did you mean {near!r}?"
    return f"there is no {noun} {name!r}{meant} The {noun}s are {', '.join(known)}."


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one; None if all differ too much."""
    return next(iter(get_close_matches(name, list(known), n=1)), None)


class _Declared:
    """The arguments of a function, or of a class's constructor."""

    def __init__(self, called: Any, function: Callable[..., Any]) -> None:
        self._called = called
        self._function = function

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ConfigError for undeclared arguments. Python itself reports missing ones."""
        noun, prefix = ("field", f"{self._called.__name__}.") if isinstance(self._called, type) else ("argument", "")
        for name, value in self._given(args, kwargs):
            if name not in self._parameters:
                if (written := self._object_with(name)) is not None:
                    raise ConfigError(f"{self._called.__name__}: there is no {noun} {name!r}; write {written}.")
                raise ConfigError(f"{self._called.__name__}: {unknown_name(noun, name, self._parameters)}")
            if value is self._parameters[name].default or _fits(value, self.kinds[name]):
                continue
            kind = self.kinds[name]
            hint = self._hint(name, value)
            raise ConfigError(f"{prefix}{name}={_shown(value)} is not allowed; it takes {annotation_text(kind)}.{hint}")

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        # without `self`
        values = args[1:] if isinstance(self._called, type) else args
        yield from zip(self._parameters, values, strict=False)
        yield from kwargs.items()

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return {
            name: parameter
            for name, parameter in inspect.signature(self._called).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }

    @cached_property
    def kinds(self) -> dict[str, Any]:
        return get_type_hints(self._called if is_dataclass(self._called) else self._function)

    def _object_with(self, name: str) -> str | None:
        """Return how to give this name as a field of one of the objects that are taken."""
        for argument, kind in self.kinds.items():
            for choice in _choices(kind):
                if is_dataclass(choice) and name in {own.name for own in fields(choice)}:
                    return f"{argument}={annotation_text(choice)}({name}=…)"
        return None

    def _hint(self, name: str, value: Any) -> str:
        """Return the right way to write it, if that is known."""
        if _fits([value], self.kinds[name]):
            return f" Write {name}={_shown([value])}."
        for kind in _choices(self.kinds[name]):
            if kind is timedelta and _fits(value, float):
                return f" Write {name}=timedelta(seconds={value!r})."
            if isinstance(kind, type) and issubclass(kind, Enum) and str(value) in kind.__members__:
                return f" Write {name}={kind[str(value)]}."
            if isinstance(kind, type) and is_dataclass(kind):
                return f" Write {name}={_construction(kind, value)}."
        return ""


def _fits(value: Any, kind: Any) -> bool:
    """Return whether the value is of this kind, an annotation. A class is asked for by `isinstance`, and never looked
    into.
    """
    origin: Any = get_origin(kind) or kind
    parts = get_args(kind)
    if kind is Any:
        return True
    if origin in _UNIONS:
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(isinstance(value, type(part)) and value == part for part in parts)
    if origin is abc.Callable:
        return callable(value)
    if origin in _NUMBERS:
        return isinstance(value, _NUMBERS[origin]) and not isinstance(value, bool)
    # the items of these alone are read
    taken: Any = (origin, list) if origin in (set, tuple) else origin
    if not isinstance(value, taken):
        return False
    if origin in (abc.Mapping, dict):
        return all(_fits(key, parts[0]) and _fits(item, parts[1]) for key, item in value.items())
    if origin is tuple and parts[-1] is not ...:
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if origin in (abc.Sequence, list, set, tuple):
        return not _is_one_thing(value) and all(_fits(item, parts[0]) for item in value)
    return True


def _is_one_thing(value: Any) -> bool:
    """Return whether it can be iterated, but is no list of anything: text, and named tuples such as Dagster's
    AssetKey.
    """
    return isinstance(value, str | bytes) or (isinstance(value, tuple) and type(value) is not tuple)


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in _UNIONS else (kind,)


def annotation_text(kind: Any) -> str:
    """Return the annotation as one writes it, without modules, and `or` between alternatives."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        return " or ".join(dict.fromkeys(map(annotation_text, parts)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(map(str, kind))
    if origin is abc.Callable:
        return "a function"
    if kind is NoneType:
        return "None"
    if kind is Any:
        return "anything"
    if kind is ...:
        return "..."
    name = getattr(origin or kind, "__name__", str(kind))
    return f"{name}[{', '.join(map(annotation_text, parts))}]" if origin in _CONTAINERS else name


def _construction(kind: Any, value: Any) -> str:
    """Return how such an object is made, with the value in its first field where it fits there and is enough."""
    parameters = inspect.signature(kind).parameters
    first, *_ = parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if set(needed) <= {first} and _fits(value, get_type_hints(kind)[first]):
        return f"{kind.__name__}({first}={_shown(value)})"
    return f"{kind.__name__}({', '.join(f'{name}=…' for name in needed or parameters)})"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
