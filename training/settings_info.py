"""The settings as the form, the command line and the README show them, read off their declaration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from training.settings import Group, Settings


@dataclass(frozen=True)
class SettingInfo:
    """A setting as it is shown; `kind` is bool, int, float, str or list. `methods` are those it matters to, or none."""

    name: str
    label: str
    help: str
    group: Group
    default: Any
    kind: type
    choices: tuple[str, ...]
    methods: tuple[str, ...]


def describe() -> list[SettingInfo]:
    """All settings in the order of their declaration."""
    return [_describe(name, field) for name, field in Settings.model_fields.items()]


def _describe(name: str, field: FieldInfo) -> SettingInfo:
    annotation: Any = field.annotation
    kind = list if get_origin(annotation) is list else annotation
    literal = get_args(annotation)[0] if kind is list else annotation
    choices = get_args(literal) if get_origin(literal) is Literal else ()
    extra: Any = field.json_schema_extra
    return SettingInfo(
        name=name,
        label=str(field.title),
        help=str(field.description),
        group=Group(extra["group"]),
        default=field.default,
        kind=str if get_origin(kind) is Literal else kind,
        choices=choices or tuple(extra["choices"]),
        methods=tuple(extra["methods"]),
    )


def with_labels(problems: dict[str, str]) -> dict[str, str]:
    """What is wrong, by setting name, each sentence with the setting's label before it."""
    return {
        name: f"{Settings.model_fields[name].title}: {text}" if name in Settings.model_fields else text
        for name, text in problems.items()
    }
