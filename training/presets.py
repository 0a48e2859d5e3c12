"""The presets: partial settings in presets/*.json, the user's own beside those that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import UserError
from training.parsing import parse
from training.paths import Folders
from training.settings import Settings

FIRST_VISIT = "Quick demo"


class Preset(BaseModel):
    """Some settings under a name; `about` says in a sentence what they are good for."""

    model_config = ConfigDict(extra="forbid")

    label: str
    about: str
    settings: dict[str, Any]


# What is the user's own choice; a preset leaves it alone unless it names it.
_LEFT_ALONE = (
    "base_model",
    "trust_remote_code",
    "start_from",
    "start_as",
    "name",
    "if_exists",
    "dataset",
    "raw_text",
    "data_format",
    "chat_template",
    "evaluation_file",
    "new_tokens",
    "seed",
)


def values_of(preset: Preset) -> dict[str, Any]:
    """The preset's settings with the defaults for the others, so that it means the same whatever was chosen before."""
    defaults = Settings().model_dump(mode="json")
    return {name: value for name, value in defaults.items() if name not in _LEFT_ALONE} | preset.settings


def load_preset(path: Path) -> Preset:
    """The preset in a file; raises UserError when the file or a setting in it is wrong."""
    try:
        preset = Preset.model_validate_json(path.read_text(encoding="utf-8"))
        preset.settings = parse(preset.settings).model_dump(mode="json", exclude_unset=True)
    except UnicodeDecodeError:
        raise UserError(f"The preset {path.name} is not UTF-8 text: save it as UTF-8.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"The preset {path.name} is damaged: {where}: {first['msg']}.") from None
    except UserError as error:
        raise UserError(f"The preset {path.name} cannot be used. {error}") from None
    return preset


def load_presets(folders: Folders) -> tuple[list[Preset], list[str]]:
    """The presets in the order of their file names, and a sentence for each file that could not be read."""
    presets, problems = [], []
    for path in sorted(folders.presets.glob("*.json")):
        try:
            presets.append(load_preset(path))
        except UserError as error:
            problems.append(str(error))
    return presets, problems
