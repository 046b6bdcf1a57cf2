"""The sandbox of templates: Jinja's own, with a bound on the size of an expression's result.

Jinja's sandbox stops a template from reaching out, and bounds `range`; a large number in `{{ "-" * n }}` still takes
all memory of the machine. So every operation that makes much out of little is checked first: `*`, `+`, `**`, `%` and
`~`, formats, the methods and filters that pad, repeat, replace and join, and the joined parts of a template. The bound
is above the longest request that a vendor takes, images in base64 included, and below a machine's memory.

Refuses to bound time: a loop in a loop that makes nothing runs as long as it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import generate_lorem_ipsum

__all__ = ["MOST_CHARS", "Sandbox", "size_of"]

MOST_CHARS = 50_000_000
"""Largest number of characters, or items, that an expression or a whole template may make."""

_NUMBER_CHARS = 32
_WORD_CHARS = 16
_MOST_BITS = 100_000
# `%-10.3f`, `%(name)10s`, `%*d`: width and precision.
_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")
_DIGITS = re.compile(r"\d+")
_PLAIN = ImmutableSandboxedEnvironment()
"""Looks attributes up as a template does."""


def size_of(value: object) -> int:
    """Return the approximate number of characters of a value as text. A repeated part counts each time it is shown."""
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, int):
        # A digit has 3.3 bits.
        return value.bit_length() // 3 + 1
    if isinstance(value, dict):
        return _sum_of(part for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return _sum_of(value)
    return _NUMBER_CHARS


def _sum_of(values: Iterable[object]) -> int:
    total = 2
    for value in values:
        total += size_of(value) + 2
        # A larger size makes no difference, and counting a list of lists of lists could take forever.
        if total > MOST_CHARS:
            break
    return total


def _check(size: int) -> None:
    if size > MOST_CHARS:
        raise OverflowError(f"this would make more than {MOST_CHARS:,} characters or items, which is the most allowed")


def _concat(pieces: Iterable[str]) -> str:
    """Join the pieces of a template. Stops at the bound, also of a generator that would go on."""
    parts: list[str] = []
    total = 0
    for piece in pieces:
        total += len(piece)
        # before the next piece is made: each may be as long as all of them
        if total > MOST_CHARS:
            _check(total)
        parts.append(piece)
    return "".join(parts)


def _times(left: object, right: object) -> int:
    count, many = (left, right) if isinstance(left, int) else (right, left)
    if not isinstance(count, int):
        return 0
    if isinstance(many, int):
        return _bits(count.bit_length() + many.bit_length())
    return count * len(many) if hasattr(many, "__len__") else 0


def _power(left: object, right: object) -> int:
    return _bits(left.bit_length() * right) if isinstance(left, int) and isinstance(right, int) else 0


def _bits(bits: int) -> int:
    """Return the size of a number. A number too long for Python to print counts as too large: it would take long,
    too.
    """
    return 0 if bits <= _MOST_BITS else MOST_CHARS + bits


def _plus(left: Any, right: Any) -> int:
    return len(left) + len(right) if hasattr(left, "__len__") and hasattr(right, "__len__") else 0


def _percent(text: object, given: object) -> int:
    if not isinstance(text, str | bytes):
        return 0
    widths = [width for pair in _PERCENT.findall(str(text)) for width in pair if width]
    # Each of several values is shown once, a named one any number of times.
    size = len(text) + size_of(given) * (str(text).count("%") if isinstance(given, Mapping) else 1)
    size += sum(int(width) for width in widths if width != "*")
    return size + (_sum_of_numbers(given) if "*" in widths else 0)


def _formatted(text: str, given: list[object]) -> int:
    size = len(text) + text.count("{") * max(map(size_of, given), default=0)
    specs = [spec for _, _, spec, _ in Formatter().parse(text) if spec]
    size += sum(int(number) for spec in specs for number in _DIGITS.findall(spec))
    return size + (_sum_of_numbers(given) if any("{" in spec for spec in specs) else 0)


def _sum_of_numbers(given: object) -> int:
    values = given.values() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else (given,)
    numbers = [abs(value) for value in values if isinstance(value, int)]
    return sum(numbers) + sum(_sum_of_numbers(value) for value in values if isinstance(value, Mapping | list | tuple))


_OPERATORS: Mapping[str, Callable[[Any, Any], int]] = {"*": _times, "**": _power, "+": _plus, "%": _percent}


def _number(value: object) -> int:
    return abs(value) if isinstance(value, int) else 0


def _width(_text: object, width: object = 0, *_more: object, **named: object) -> int:
    return max(map(_number, (width, *named.values())))


def _replaced(text: Any, old: Any = "", new: Any = "", *_more: object, **_named: object) -> int:
    text, old, new = (value if isinstance(value, bytes) else str(value) for value in (text, old, new))
    times: int = text.count(old)
    return len(text) + times * len(new)


def _joined(values: Any, separator: object = "", attribute: Any = None, **named: object) -> int:
    separator = named.get("d", separator)
    if attribute is not None:
        values = list(map(make_attrgetter(_PLAIN, attribute), values))
    if isinstance(values, str):
        return len(values) * (1 + size_of(separator))
    return size_of(values) + (len(values) if hasattr(values, "__len__") else 0) * size_of(separator)


def _indented(text: object, width: object = 4, *_more: object, **_named: object) -> int:
    text = str(text)
    return len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else _number(width))


def _wrapped(text: object, width: object = 79, *more: object, **named: object) -> int:
    wrap = named.get("wrapstring", more[1] if len(more) > 1 else "")
    return size_of(text) + (size_of(text) // max(_number(width), 1) + 1) * size_of(wrap or "")


def _as_text(value: object, *_more: object, **_named: object) -> int:
    return size_of(value)


def _as_json(value: object, indent: object = None, level: int = 1) -> int:
    """Return the size of JSON, whose lines are indented by their level."""
    if not isinstance(value, dict | list | tuple):
        return size_of(value)
    width = len(indent) if isinstance(indent, str) else _number(indent)
    total = 2 + width * level
    for part in value:
        total += 2 + width * level + (size_of(part) if isinstance(value, dict) else 0)
        total += _as_json(value[part] if isinstance(value, dict) else part, indent, level + 1)
        # More need not be known, as in `_sum_of`.
        if total > MOST_CHARS:
            break
    return total


def _texts(number: object = 5, _html: object = True, _least: object = 20, most: object = 100, **named: object) -> int:
    return _number(named.get("n", number)) * _number(named.get("max", most)) * _WORD_CHARS


_FILTERS: Mapping[str, Callable[..., int]] = {
    "batch": _width,
    "center": _width,
    "format": lambda text, *given, **named: _percent(text, given or named),
    "indent": _indented,
    "join": _joined,
    "list": _as_text,
    "pprint": _as_text,
    "replace": _replaced,
    "round": _width,
    "slice": _width,
    "string": _as_text,
    "sum": _as_text,
    "tojson": _as_json,
    "wordwrap": _wrapped,
    "xmlattr": _as_text,
}
"""Size of a filter's result, by its name. The others make at most a few times the size of their input."""

_ACTS: Mapping[str, tuple[Callable[..., Any], Callable[..., int]]] = {
    **{name: (FILTERS[name], size) for name, size in _FILTERS.items()},
    "lipsum": (generate_lorem_ipsum, _texts),
}

_METHODS: Mapping[str, Callable[..., int]] = {
    "center": _width,
    "expandtabs": lambda text, size=8, **named: len(text) + text.count("\t") * _number(named.get("tabsize", size)),
    "join": lambda separator, values=(): _joined(values, separator),
    "ljust": _width,
    "replace": _replaced,
    "rjust": _width,
    "to_bytes": _width,
    "translate": lambda text, table=(): len(text) * (1 + max(map(size_of, table.values()), default=0)),
    "zfill": _width,
}
"""Size of a result of a method of text, bytes or a number, by its name."""


class _Bounded:
    """A filter, or `lipsum`, that checks the size of its result before it makes it. Picklable for workers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._act, self._size = _ACTS[name]
        if hasattr(self._act, "jinja_pass_arg"):
            self.jinja_pass_arg = self._act.jinja_pass_arg

    def __reduce__(self) -> Any:
        return _Bounded, (self._name,)

    def __call__(self, *args: Any, **named: Any) -> Any:
        # Jinja gives some filters its own context or environment as the first argument.
        skipped = int(hasattr(self, "jinja_pass_arg"))
        given = [_listed(arg) for arg in args[skipped:]]
        _check(self._size(*given, **named))
        return self._act(*args[:skipped], *given, **named)


def _listed(value: Any) -> Any:
    """Return an iterator's values, such as the result of `map`, as a list, whose size is known; others unchanged."""
    # Faster than to ask for the type of an iterator, once a call.
    if not hasattr(value, "__next__"):
        return value
    values, total = [], 0
    for part in value:
        total += size_of(part) + 2
        _check(total)
        values.append(part)
    return values


class _Pieces(list[str]):
    """Text pieces of a block before it is joined, as in `{% set %}` and macros: too many are refused as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._total = 0

    def append(self, piece: str) -> None:
        """Add a piece."""
        self._total += len(piece)
        _check(self._total)
        super().append(piece)


class _Generator(CodeGenerator):
    """Makes `~` a call of the sandbox: of all operators, this one alone cannot be intercepted. Blocks that are made
    before they are shown are made of one piece after the other.
    """

    def buffer(self, frame: Frame) -> None:
        """Open a block whose pieces are kept."""
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.new_pieces()")

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        if frame.buffer is None or len(node.nodes) == 1:
            super().visit_Output(node, frame)
            return
        # Jinja makes all pieces before it adds the first.
        for piece in node.nodes:
            super().visit_Output(nodes.Output([piece], lineno=node.lineno), frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates make at most `MOST_CHARS` at once. More is an OverflowError."""

    intercepted_binops = frozenset(_OPERATORS)
    code_generator_class = _Generator
    concat = staticmethod(_concat)
    new_pieces = _Pieces

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters |= {name: _Bounded(name) for name in _FILTERS}
        self.globals["lipsum"] = _Bounded("lipsum")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - as in Jinja
        """Check the size of the result before it is made."""
        _check(_OPERATORS[operator](left, right))
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Check the size of the result of `"…".format(…)`, too."""
        act = super().wrap_str_format(value)
        if act is None:
            return None

        def bounded(*args: Any, **named: Any) -> str:
            _check(_formatted(str(value.__self__), [*args, *named.values()]))
            return act(*args, **named)

        return bounded

    def call(__self, __context: Context, __act: Any, *args: Any, **named: Any) -> Any:  # noqa: N805, PYI063 - as in Jinja
        """Check the size of a method's result before the method is called."""
        size = _METHODS.get(getattr(__act, "__name__", ""))
        owner = getattr(__act, "__self__", None)
        if size is not None and isinstance(owner, str | bytes | int):
            args = tuple(map(_listed, args))
            _check(size(owner, *args, **named))
        return super().call(__context, __act, *args, **named)
