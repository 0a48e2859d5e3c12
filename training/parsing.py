"""Makes settings of raw values from the form, a file or the command line; says in a sentence what is wrong."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from training.errors import SettingsError
from training.settings import Settings
from training.settings_info import with_labels


def parse(values: dict[str, Any]) -> Settings:
    """Settings from form values, a file or the command line; raises SettingsError naming all that is wrong."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for detail in error.errors():
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, SettingsError):
                problems |= with_labels(cause.problems)
            elif not detail["loc"]:
                problems[""] = "These are no settings: they must be an object with a value for each setting's name."
            else:
                name = str(detail["loc"][0])
                problems |= with_labels({name: _sentence(detail, name)})
        raise SettingsError(problems) from None


def parse_runnable(values: dict[str, Any]) -> Settings:
    """Settings of a training that can start; raises SettingsError naming all that is wrong or missing."""
    problems = _missing(values)
    try:
        settings = parse(values)
    except SettingsError as error:
        # What is wrong by itself hides what does not fit together: that is looked for in the rest.
        rest = {name: value for name, value in values.items() if name not in error.problems}
        try:
            parse(rest)
        except SettingsError as more:
            problems |= more.problems
        problems |= error.problems
    if problems:
        raise SettingsError({name: problems[name] for name in (*Settings.model_fields, *problems) if name in problems})
    return settings


def _missing(values: dict[str, Any]) -> dict[str, str]:
    """What a training cannot do without, by setting name."""
    missing = {}
    if not str(values.get("base_model", Settings.model_fields["base_model"].default)).strip():
        missing["base_model"] = "choose one."
    if not str(values.get("name", "")).strip():
        missing["name"] = "type a name for the LoRA, for example my-first-lora."
    if not values.get("dataset") and not values.get("raw_text"):
        missing["dataset"] = "choose a dataset or a raw text file, or upload yours."
    return with_labels(missing)


def _sentence(detail: ErrorDetails, name: str) -> str:
    """What is wrong with one value, in words; pydantic's own names for errors are not for users."""
    given, context = detail["input"], detail.get("ctx", {})
    if given in ("", None) and detail["type"] not in ("extra_forbidden", "value_error"):
        return "it is empty: type a value."
    match detail["type"]:
        case "extra_forbidden":
            return f"there is no setting called '{name}'."
        case "value_error":
            return str(context["error"])
        case "float_parsing" | "float_type" | "finite_number":
            return f"'{given}' is not a number: write it like 0.0003 or 3e-4."
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"'{given}' is not a whole number."
        case "greater_than_equal":
            return f"{given} is too low: the least is {context['ge']}."
        case "greater_than":
            return f"{given} is too low: it must be above {context['gt']}."
        case "less_than_equal":
            return f"{given} is too high: the most is {context['le']}."
        case "less_than":
            return f"{given} is too high: it must be below {context['lt']}."
        case "literal_error":
            return f"'{given}' is not one of {context['expected']}."
        case "too_short":
            return "tick at least one."
        case _:
            return f"'{given}' cannot be used ({detail['msg']})."
