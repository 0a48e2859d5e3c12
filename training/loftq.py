"""LoftQ: a new LoRA begins with the main directions of what 4-bit loading lost (Li et al., 2023; one round).

PEFT has it too, but for a GPU only, and without regard to the LoRA's alpha.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from training.errors import UserError

_ITERATIONS = 4  # of the power method: what is lost has many directions of nearly the same size
_NAME = "default"  # PEFT's for an adapter that was given none


@torch.no_grad()
def make_up_for_quantization(model: PeftModel, source: str) -> None:
    """Set A and B of each LoRA layer on 4-bit weights so that B A comes nearest to what they lack of the originals.

    `source` is the base model's folder or Hub name; raises UserError where the original weights are not in it.
    """
    with _original_weights(source) as originals:
        for name, layer in model.named_modules():
            if not isinstance(layer, LoraLayer) or not isinstance(base := layer.get_base_layer(), Linear4bit):
                continue
            original = originals.get(name.removeprefix("base_model.model."), base.weight.device)
            if issubclass(base.source_cls, Conv1D):
                original = original.T
            kept = dequantize_module_weight(base).float()
            if original.shape != kept.shape:
                raise _not_original(source)
            rank = layer.r[_NAME]
            u, values, v = torch.svd_lowrank(original - kept, q=min(2 * rank, *kept.shape), niter=_ITERATIONS)
            roots = values[:rank].sqrt()
            a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
            a.zero_()
            b.zero_()
            a[: len(roots)] = (v[:, :rank] * roots).T.to(a)
            b[:, : len(roots)] = (u[:, :rank] * roots / layer.scaling[_NAME]).to(b)


class _Originals:
    """The weights in a model's files, read one at a time."""

    def __init__(self, source: str, files: dict[str, safe_open]) -> None:
        self._source = source
        self._files = files

    def get(self, module: str, device: torch.device) -> torch.Tensor:
        """The weight of a module, in float32; some files leave the first part of its name out."""
        for key in (f"{module}.weight", f"{module.partition('.')[2]}.weight"):
            if key in self._files:
                weight: torch.Tensor = self._files[key].get_tensor(key)
                return weight.to(device, torch.float32)
        raise _not_original(self._source)


@contextmanager
def _original_weights(source: str) -> Iterator[_Originals]:
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index:
        paths, _ = get_checkpoint_shard_files(source, index)
    else:
        paths = [cached_file(source, SAFE_WEIGHTS_NAME)]
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        yield _Originals(source, {key: file for file in opened for key in file.keys()})  # noqa: SIM118 - no mapping


def _not_original(source: str) -> UserError:
    return UserError(
        f"Initialization: LoftQ finds no original weights in '{Path(source).name}' to compare with: take default."
    )
