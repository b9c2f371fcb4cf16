"""Bounds on what one operation of a stranger's chat template makes.

A template that lasts is ended between two instructions (`time_limit`); what a single one makes,
such as `'a' * 10**12`, has to be known before.
"""

import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from functools import wraps
from string import Formatter
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .time_limit import time_limit

MOST = 2**26  # Characters of a text, or items of a list.
_BITS = 2**16  # Of a whole number.
_NESTED = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)
_DIRECTIVE = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")
# What makes much of little in more ways than are worth a check; chat templates do not use it.
_NO_FILTERS = ("batch", "pprint", "slice", "sum", "urlize", "wordwrap", "xmlattr")
_NO_METHODS = {str: {"encode", "expandtabs", "maketrans", "translate"}, int: {"to_bytes"}}


@contextmanager
def rendering(seconds: float) -> Iterator[None]:
    """transformers renders chat templates within these bounds here, and is ended after a time.

    Raises:
      TimeoutError, MemoryError: as `time_limit` does.
    """
    from transformers.utils import chat_template_utils

    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
    with time_limit(seconds):
        yield


def measure(*values: Any) -> tuple[int, int]:
    """The characters of values as texts, roughly, and how deep they are nested.

    Raises:
      ValueError: if they have too many; they are counted no further.
    """
    count, depth, level = 0, 0, list(values)
    while True:
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                count += len(value)
            elif isinstance(value, _NESTED):
                count = _within(count + 2 + 2 * len(value))  # Brackets and commas.
                for items in (
                    (value.keys(), value.values()) if isinstance(value, dict) else (value,)
                ):
                    below.extend(items)
            elif isinstance(value, int):
                count += 1 + value.bit_length() // 3
            elif isinstance(value, Namespace):
                raise ValueError("it writes a namespace")
            else:
                count += 1
        if not below:
            return _within(count), depth
        level, depth = below, depth + 1


def _within(count: int, most: int = MOST) -> int:
    if count > most:
        raise ValueError(f"it makes more than {most:,} characters, items or bits at once")
    return count


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_operator(operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str):
        _check_percent(left, right)
    elif operator == "+":
        _within(_length(left) + _length(right))
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length(), right.bit_length()
        if operator == "*":
            _within(sum(bits), _BITS)
        elif operator == "**":
            _within(bits[0] * abs(right), _BITS)
    elif operator == "*":
        many, number = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(number, int):
            _within(_length(many) * number)


def _check_percent(text: str, values: Any) -> None:
    widths = [width for found in _DIRECTIVE.findall(text) for width in found if width]
    if "*" in widths:
        raise ValueError("it takes a width from a value")
    _within(sum(map(int, widths)) + text.count("%") * measure(values)[0])


def _check_format(text: str, *values: Any) -> None:
    specs = [spec or "" for _, field, spec, _ in Formatter().parse(text) if field is not None]
    if any("{" in spec for spec in specs):
        raise ValueError("it takes a width from a value")
    widths = sum(int(width) for spec in specs for width in re.findall(r"\d+", spec))
    _within(widths + len(specs) * measure(*values)[0])


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    measure(text, old, new)
    text, old, new = map(str, (text, old, new))
    _within(len(text) + text.count(old) * len(new))


def _check_join(parts: list[Any], between: Any = "") -> None:
    _within(measure(parts)[0] + len(parts) * measure(between)[0])


def _check_width(_: Any, width: Any = 80, *__: Any, **___: Any) -> None:
    _within(width if isinstance(width, int) else 0)


def _check_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    size = width if isinstance(width, int) else _length(width)
    _within((str(text).count("\n") + 1) * size)


def _check_json(value: Any, *args: Any, **options: Any) -> None:
    count, depth = measure(value)
    filling = [*args, *options.values()]
    size = sum(fill if isinstance(fill, int) else measure(fill)[0] for fill in filling if fill)
    _within(count * (1 + size * (depth + 1)))


def _check_round(_: Any, precision: Any = 0, *__: Any, **___: Any) -> None:
    _within(abs(precision) if isinstance(precision, int) else 0, 100)


_METHODS: dict[str, Callable[..., object]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _check_width),
    "replace": _check_replace,
}
# By the place of the value among the arguments, after which the filter's own come.
_FILTERS: dict[str, tuple[int, Callable[..., object]]] = {
    "center": (0, _check_width),
    "format": (0, lambda text, *args, **named: _check_percent(str(text), named or args)),
    "indent": (0, _check_indent),
    "join": (1, lambda parts, between="", *_, **named: _check_join(parts, named.get("d", between))),
    "replace": (1, _check_replace),
    "round": (0, _check_round),
    "string": (0, measure),
    "tojson": (0, _check_json),
}


class _Filters(dict[str, Callable[..., Any]]):
    """Filters, which are checked before they are called; transformers adds its own later."""

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        place, check = _FILTERS.get(name, (0, None))
        if check is None:
            super().__setitem__(name, function)
            return

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if name == "join" and not isinstance(args[place], str):
                args = (*args[:place], list(args[place]), *args[place + 1 :])
            check(*args[place:], **kwargs)
            return function(*args, **kwargs)

        super().__setitem__(name, checked)


class _Generator(CodeGenerator):
    """Lets the parts of a ~ be checked."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Template(Template):
    """A template whose text is not longer than the bound, also where it is taken in pieces."""

    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        count = 0
        for part in super().generate(*args, **kwargs):
            count = _within(count + len(part))
            yield part


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja's sandbox, in which no operation makes more than `MOST` characters or items."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Generator
    template_class = _Template

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, finalize=_checked_output)
        filters, self.filters = self.filters, _Filters()
        for name, function in filters.items():
            if name not in _NO_FILTERS:
                self.filters[name] = function
        del self.globals["lipsum"]

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The text of a template, a macro or a block."""
        texts, count = [], 0
        for part in parts:
            count = _within(count + len(part))
            texts.append(part)
        return "".join(texts)

    @staticmethod
    def joined(parts: tuple[Any, ...]) -> str:
        """The text of a ~."""
        measure(*parts)
        return "".join(map(str, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The value of a binary operator."""
        _check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute."""
        refused = any(isinstance(obj, kind) and attr in no for kind, no in _NO_METHODS.items())
        return not refused and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A text's `format`, checked."""
        found = super().wrap_str_format(value)
        if found is None:
            return None
        formatted = found

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, args, kwargs)
            return formatted(*args, **kwargs)

        return checked

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The value of a function or a method of a template."""
        text = obj.__self__ if isinstance(obj, BuiltinMethodType) else None
        if isinstance(text, str):
            if obj.__name__ == "join" and args:
                args = (list(args[0]),)
                _check_join(args[0], text)
            elif check := _METHODS.get(obj.__name__):
                check(text, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


def _checked_output(value: Any) -> Any:
    if not isinstance(value, str):
        measure(value)
    return value
