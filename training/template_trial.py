"""Tries a chat template out in a process of its own before it is used anywhere: templates come from strangers too.

The sandbox of Jinja keeps a template from files and programs, but not from filling the memory or going on for ever.
`python -m training.template_trial` is that process: it reads the template from its input and needs Jinja only.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.errors import UserError
from training.watched import OUT_OF_MEMORY, Bounds, limit_memory, run_watched

# What rendering raises: templates add what may be missing, index what may be empty, nest or call themselves too deep,
# and Python's own errors come through Jinja as they are.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
LONGEST = 1 << 20  # characters of a template; the longest of known models have some 20,000
_LONGEST_TEXT = 1 << 20  # characters that it may make of a conversation of a few words
_BOUNDS = Bounds(seconds=2.0, memory=512 << 20)  # a hundred times what it takes
_TOO_LONG = 4  # an exit code
_SPECIAL_NAME = re.compile(r"__\w+?__")
_INSIDES = frozenset(name for name in (*dir(type), *dir(lambda: 0), "__builtins__", "__import__") if name[:2] == "__")


class _GenerationMarkers(Extension):
    """The tag that transformers adds to Jinja, as far as reading it goes."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates, without that large library."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarkers, loopcontrols]
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **options)
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = time.strftime
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


def check_template(source: str, what: str) -> None:
    """Raise UserError for a template, called `what` at the beginning of the sentence, that would do harm if used.

    One that only cannot be rendered passes: what is wrong with it is told with the conversation it fails at.
    """
    if problem := _problem(source):
        raise UserError(f"{what} {problem}: mend it or choose another template.")


@lru_cache(maxsize=64)
def _problem(source: str) -> str:
    if len(source) > LONGEST:
        return f"is longer than {LONGEST:,} characters"
    try:
        tree = environment().parse(source)
    except TEMPLATE_ERRORS:
        return ""  # it is not used either
    if name := next(_insides(tree), ""):
        return f"reaches for what lies inside of Python ({name})"
    return _after_trial(source)


def _insides(tree: nodes.Template) -> Iterator[str]:
    """Names like __class__ which no template needs; the sandbox keeps them shut, but says nothing."""
    for attribute in tree.find_all(nodes.Getattr):
        yield from {attribute.attr} & _INSIDES
    for constant in tree.find_all(nodes.Const):  # in brackets, for a filter or in what is formatted
        yield from {*_SPECIAL_NAME.findall(str(constant.value))} & _INSIDES


def _after_trial(source: str) -> str:
    """Render the template in a process of its own, which is ended when it takes more than it should."""
    outcome = run_watched(__name__, [], source.encode(errors="surrogatepass"), _BOUNDS)
    if outcome.over == "memory":
        return "fills the memory"
    if outcome.over == "time":
        return f"needs more than {_BOUNDS.seconds:.0f} seconds for a conversation of a few words"
    if outcome.code == _TOO_LONG:
        return f"makes more than {_LONGEST_TEXT:,} characters of a conversation of a few words"
    return "makes the program crash that reads it" if outcome.code else ""


def _conversations() -> Iterator[dict[str, Any]]:
    """What templates make a difference between, each in a few words."""
    turns = [{"role": role, "content": "word"} for _ in range(3) for role in ("user", "assistant")]
    system = {"role": "system", "content": "word"}
    call = {"type": "function", "function": {"name": "word", "arguments": {"word": "word"}}}
    with_call = [
        turns[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "word", "content": "word"},
        turns[1],
    ]
    schema = {"type": "object", "properties": {"word": {"type": "string", "description": "word"}}, "required": []}
    tools = [{"type": "function", "function": {"name": "word", "description": "word", "parameters": schema}}]
    for messages in (turns[:1], turns[:2], turns, [system, *turns[:1]], [system, *turns]):
        for prompt in (False, True):
            yield {"messages": messages, "tools": None, "add_generation_prompt": prompt}
    yield {"messages": with_call, "tools": tools, "add_generation_prompt": False}


def main() -> int:
    """Render the template that stands in the input; the exit code tells what it does too much of."""
    limit_memory(2 * _BOUNDS.memory)
    tokens = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "unk", "pad")}
    try:
        template = environment().from_string(sys.stdin.buffer.read().decode(errors="surrogatepass"))
        for conversation in _conversations():
            try:
                size = 0
                for part in template.generate(**conversation, **tokens):
                    size += len(part)
                    if size > _LONGEST_TEXT:
                        return _TOO_LONG
            except TEMPLATE_ERRORS:
                continue  # another conversation may do
    except TEMPLATE_ERRORS:
        return 0
    except MemoryError:
        return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
