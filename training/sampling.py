"""How a chat draws its words, declared once: the controls of the page are made from it."""

from __future__ import annotations

import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.errors import UserError
from training.settings import MAX_SEED

RANDOM_SEED = -1


class Sampling(BaseModel):
    """How the next token is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(
        default=0.7,
        title="Temperature",
        description="How freely words are chosen. 0 always takes the likeliest one; above 1 it becomes wild.",
        ge=0,
        le=2,
        json_schema_extra={"step": 0.05},
    )
    top_p: float = Field(
        default=0.9,
        title="Top-p",
        description="Only the likeliest words that together make up this share are drawn from. 1: all of them.",
        ge=0.05,
        le=1,
        json_schema_extra={"step": 0.05},
    )
    max_tokens: int = Field(
        default=256,
        title="Max tokens",
        description="The longest answer; a token is a short word or a part of one.",
        ge=1,
        le=4096,
        json_schema_extra={"step": 1},
    )
    seed: int = Field(
        default=RANDOM_SEED,
        title="Seed",
        description="The same seed gives the same answer to the same conversation. -1: a new one each time.",
        ge=RANDOM_SEED,
        le=MAX_SEED,
    )

    def settled(self) -> Sampling:
        """The same with its seed drawn, so that two answers can share it."""
        return self if self.seed != RANDOM_SEED else self.model_copy(update={"seed": secrets.randbelow(MAX_SEED + 1)})


def describe_sampling() -> dict[str, dict[str, Any]]:
    """By name: title, description, type, default, minimum, maximum, and step where a slider suits."""
    properties: dict[str, dict[str, Any]] = Sampling.model_json_schema()["properties"]
    return properties


def make_sampling(values: dict[str, Any]) -> Sampling:
    """Sampling from a form's values, None standing for the default; raises UserError for one that cannot be used."""
    try:
        return Sampling.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        detail = error.errors()[0]
        wrong = describe_sampling()[str(detail["loc"][0])]
        kind = "a whole number" if wrong["type"] == "integer" else "a number"
        bounds = f"{wrong['minimum']} to {wrong['maximum']}"
        raise UserError(f"{wrong['title']}: '{detail['input']}' cannot be used; give {kind} from {bounds}.") from None
