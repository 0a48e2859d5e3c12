"""What a training reports: one JSON object a line in the run's events.jsonl."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    # A float16 gradient may be infinite, and JSON's null would not be read back as a number.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    time: float = Field(default_factory=time.time)  # seconds since 1970


class Preparing(_Event):
    """The data is being read: so many rows or chunks so far. Nothing is reported for data that was prepared before."""

    type: Literal["preparing"] = "preparing"
    records: int


class Downloading(_Event):
    """The base model comes from the Hub: bytes that are there, of how many."""

    type: Literal["downloading"] = "downloading"
    done: int
    total: int


class Started(_Event):
    """The data is ready and training begins, or goes on after `from_step` of `total_steps`."""

    type: Literal["started"] = "started"
    from_step: int
    total_steps: int
    epochs: float


class Step(_Event):
    """One optimizer step. `loss` is the mean over the step's trained tokens, in nats a token."""

    type: Literal["step"] = "step"
    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float  # before clipping
    tokens: int  # all tokens computed in this step
    seconds: float  # how long it took, without evaluation and saving
    memory: int  # bytes: the peak on the GPU, else what the process holds


class Evaluation(_Event):
    """The mean loss over the evaluation examples' trained tokens, in nats a token."""

    type: Literal["evaluation"] = "evaluation"
    step: int
    loss: float


class CheckpointSaved(_Event):
    """A complete checkpoint lies in the run folder."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    loss: float | None
    evaluation_loss: float | None


class Note(_Event):
    """Something the reader should know, in words."""

    type: Literal["note"] = "note"
    level: Literal["info", "warning", "error"] = "info"
    text: str


Event = Annotated[
    Preparing | Downloading | Started | Step | Evaluation | CheckpointSaved | Note, Field(discriminator="type")
]
event_reader: TypeAdapter[Event] = TypeAdapter(Event)
