"""Chat templates: how a conversation becomes the prompt of a public model, by jinja2 in a sandbox.

A template is code of a foreign folder. It can reach nothing outside (`ImmutableSandboxedEnvironment`), and it is ended
after a number of executed lines or characters, since a sandbox does not end loops.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mmattn.data.errors import DataError, shorten

MOST_LINES, MOST_CHARACTERS = 1_000_000, 10_000_000
# Methods and filters which make a text of any length in one step.
PADDING = {"batch", "center", "expandtabs", "format", "format_map", "indent", "ljust", "rjust", "zfill"}
ROLES = ("system", "user", "assistant")


class _TooLong(Exception):
    """A template did not end."""


def render(
    template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str], *, where: str = "chat_template"
) -> str:
    """Renders a conversation, with the beginning of the model's answer.

    Args:
        template: The template, in the form of transformers.
        messages: "role" and "content" of each.
        special: Special tokens by name, such as bos_token.
        where: Name of the template in errors.

    Raises:
        DataError: The template is invalid, refuses the messages, or does not end; or a message has another form.

    >>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    >>> render(template, [{"role": "user", "content": "hi"}], {})
    '<user>hi'
    """
    import jinja2

    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f"message {number}", "a mapping with role and content", shorten(message))
    environment = _sandbox()
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    try:
        compiled = environment.from_string(template)
        given = {"messages": [dict(message) for message in messages], "add_generation_prompt": True, **special}
        return _limited(compiled, {"tools": None, "documents": None} | given)  # as transformers defines them
    except (_TooLong, RecursionError, MemoryError) as error:
        raise DataError(where, "a template that ends", f"one that does not ({error})") from None
    except jinja2.TemplateError as error:
        raise DataError(where, "a template that renders the messages", shorten(str(error), 200)) from None
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, IndexError, OverflowError) as error:
        raise DataError(where, "a template that renders the messages", shorten(str(error), 200)) from None


def _sandbox() -> Any:
    """An environment of templates in which no operation fills the memory in one step."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            return _operation(operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in PADDING and super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> Any:
            return None  # `format` is no safe attribute

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.filters = {name: one for name, one in made.filters.items() if name not in PADDING}
    return made


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _operation(operator: str, left: Any, right: Any) -> Any:
    """A product, power or formatted text, unless it is too large."""
    for one, times in ((left, right), (right, left)):
        is_many = operator == "*" and isinstance(one, (str, list, tuple)) and isinstance(times, int)
        if is_many and len(one) * times > MOST_CHARACTERS:
            raise _TooLong("a product of more than 10 million parts")
    if operator == "**" and isinstance(right, (int, float)) and abs(right) > 1000:
        raise _TooLong("a large power")
    if operator == "%" and isinstance(left, str) and re.search(r"\*|\d{5}", left):
        raise _TooLong("a large width")
    return {"*": lambda a, b: a * b, "**": lambda a, b: a**b, "%": lambda a, b: a % b}[operator](left, right)


def _limited(compiled: Any, given: Mapping[str, Any]) -> str:
    """Renders, counting the lines of Python that the template was compiled to."""
    lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += 1
        if lines > MOST_LINES:
            raise _TooLong(f"more than {MOST_LINES:,} steps")
        return trace

    parts, size, before = [], 0, sys.gettrace()
    sys.settrace(trace)
    try:
        for part in compiled.root_render_func(compiled.new_context(given)):
            parts.append(part)
            size += len(part)
            if size > MOST_CHARACTERS:
                raise _TooLong(f"more than {MOST_CHARACTERS:,} characters")
    finally:
        sys.settrace(before)
    return "".join(map(str, parts))
