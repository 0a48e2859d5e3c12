"""`python -m tests.plain_load`: answers each line of JSON, a saved model, with its logits as one line of JSON.

It knows transformers and PEFT alone and nothing of Graft: what it can load, anyone can.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """The logits of one text, for all that stands before and in it; (positions, vocabulary), on the CPU, in float32."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()


def load(case: dict[str, Any]) -> torch.nn.Module:
    """The base model of the case, with its adapter if there is one, as the two libraries' manuals say."""
    quantization = case["quantization"]
    if quantization.get("bnb_4bit_compute_dtype"):
        quantization["bnb_4bit_compute_dtype"] = getattr(torch, quantization["bnb_4bit_compute_dtype"])
    options = {"quantization_config": BitsAndBytesConfig(**quantization)} if quantization else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        case["base"], dtype=getattr(torch, case["dtype"]), device_map={"": device}, **options
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Newer processors would repack the weights for speed: rounded otherwise, and DoRA then misreads them.
            module.support_avx512bf16_for_cpu = False
    if case["widened"]:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if not case["adapter"]:
        return model
    tokens = len(AutoTokenizer.from_pretrained(case["adapter"]))
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens)
    return PeftModel.from_pretrained(model, case["adapter"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"logits": logits_of(load(asked), asked["ids"]).tolist()}
        except Exception as error:  # noqa: BLE001 - the test that asked shows it
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
