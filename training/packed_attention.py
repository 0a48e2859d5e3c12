"""Attention inside each example of a row that holds several, one after the other, with nothing between them.

It is given to transformers as an attention implementation of its own, so every architecture that takes its attention
by name can use it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from training.lora_function import compute_dtype
from training.packing import Masks, Packing, current_packing
from training.processor_attention import attend

log = logging.getLogger(__name__)
PACKED = "packed"  # the name of this implementation
_NOT_DONE = ("softcap", "s_aux", "position_bias")  # what some models ask of their attention besides


class CannotPackError(Exception):
    """The model asks for what attention inside each example does not do; says what, after "its attention"."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Have the model use it; raises ValueError where its attention cannot be chosen by name."""
    AttentionInterface.register(PACKED, _attention)
    AttentionMaskInterface.register(PACKED, _masks)
    model.set_attn_implementation(PACKED)


def _masks(
    *,
    mask_function: Callable[..., Any],
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Masks | torch.Tensor | None:
    """What transformers hands to the layers in place of a mask over the whole row."""
    packing = current_packing()
    if packing is None:
        return sdpa_mask(mask_function=mask_function, use_vmap=use_vmap, device=device, **others)
    if use_vmap:
        raise CannotPackError("is masked by rules of its own")
    if torch.device(device).type == "meta":
        return Masks(packing)
    none = torch.zeros((), dtype=torch.long, device=device)
    rows = [torch.arange(start, start + length, device=device) for start, length in packing.spans()]
    # Where the last token of an example sees all before it, no window or chunk ends within the example.
    last = [mask_function(none, none, places[-1:, None], places[None, :]).flatten() for places in rows]
    if bool(torch.cat(last).all()):
        return Masks(packing)
    return Masks(packing, [~mask_function(none, none, places[:, None], places[None, :]) for places in rows])


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Masks | torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query (1, heads, tokens, size), key and value maybe with fewer heads.

    Returns (1, tokens, heads, size). A row that is not packed goes to torch's own attention.
    """
    if not isinstance(attention_mask, Masks):
        if current_packing() is not None:
            raise CannotPackError("does not tell examples apart")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    for name in _NOT_DONE:
        if others.get(name) is not None:
            raise CannotPackError(f"has a {name}")
    dtype = compute_dtype(query)  # rotated queries may be in 32 bits
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu" and not dropout:
        return attend(query, key, value, attention_mask, scale), None
    if query.is_cuda and not dropout and attention_mask.hidden is None and _has_flash_attention(query, key, value):
        return _by_flash_attention(query, key, value, attention_mask.packing, scale), None
    return _by_torch(query, key, value, attention_mask, dropout, scale), None


def _by_flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scale: float
) -> torch.Tensor:
    """The kernel for examples of any length that torch brings along; what is behind them counts as one more."""
    rest = query.shape[2] - sum(packing.lengths)
    lengths = (*packing.lengths, rest) if rest else packing.lengths
    borders, longest = _borders(lengths, query.device), max(lengths)
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=len(k[0]) < len(q[0])
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


@lru_cache(maxsize=8)
def _borders(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where examples begin and end; kept, because every layer asks for it."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _has_flash_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    heads = tuple((tensor.shape[1], tensor.shape[-1]) for tensor in (query, key, value))
    return query.dtype in (torch.bfloat16, torch.float16) and _tried_flash(query.device, query.dtype, heads)


@lru_cache(maxsize=8)
def _tried_flash(device: torch.device, dtype: torch.dtype, heads: tuple[tuple[int, int], ...]) -> bool:
    """Whether the kernel works here, forward and backward, for so many heads of these sizes: not every GPU has it."""
    q, k, v = (torch.ones(1, n, 4, size, dtype=dtype, device=device, requires_grad=True) for n, size in heads)
    try:
        with torch.enable_grad():
            _by_flash_attention(q, k, v, Packing((3, 1)), 1.0).sum().backward()
    except (RuntimeError, ValueError) as error:
        log.info("no flash attention for packed rows here", exc_info=error)
        return False
    return True


def _by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, masks: Masks, dropout: float, scale: float
) -> torch.Tensor:
    """Torch's own function, an example at a time: it knows masks and dropout on every device."""
    spans = masks.packing.spans()
    outputs = [query.new_zeros(*query.shape[:2], query.shape[2] - sum(masks.packing.lengths), value.shape[-1])]
    if query.is_meta and not dropout:  # results that nobody reads, and as much memory: all of the row at once
        spans, outputs = [(0, query.shape[2])], []
    for number, (start, length) in reversed(list(enumerate(spans))):
        mask = None if masks.hidden is None else ~masks.hidden[number]
        q, k, v = (tensor[:, :, start : start + length] for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=key.shape[1] < query.shape[1],
        )
        outputs.insert(0, out)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()
