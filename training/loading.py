"""Puts together what is trained: the base model as the settings load it, and what the method adds to it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training import model
from training.earlier import continue_adapter
from training.methods import TrainableModel, attach
from training.settings import ALWAYS, Settings


def prepare_base(source: str, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> PreTrainedModel:
    """The base model with room for the tokenizer's tokens; raises UserError when it cannot be loaded.

    Gradient checkpointing is on where the settings say always: when memory needs it is decided before.
    """
    base = model.load_base(source, settings)
    model.fit_embeddings(base, tokenizer)
    if settings.gradient_checkpointing == ALWAYS:
        base.activation_checkpointing_enable()
    return base


def add_method(base: PreTrainedModel, settings: Settings, earlier: Path | None) -> tuple[TrainableModel, list[str]]:
    """What a training that is new trains, with the adapter in the folder `earlier` where it goes on from one.

    Also gives what the user should know of it. Raises UserError when base, method or adapter do not fit together.
    """
    if earlier:
        return continue_adapter(base, earlier, settings)
    return attach(base, settings), []
