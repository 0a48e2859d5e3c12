"""A model without its weights: made of its config alone, so that counting and choosing cost no memory."""

from __future__ import annotations

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.errors import UserError


def skeleton(source: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a folder or of a Hub name on torch's meta device; raises UserError when it is no causal LM."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Base model: its config.json is of no causal language model known here ({first_line})."
        ) from error
    assert isinstance(model, PreTrainedModel)
    return model
