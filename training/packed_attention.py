"""Attention inside each example of a row that holds several, one after the other, with nothing between them.

It is given to transformers as an attention implementation of its own, so every architecture that takes its attention
by name can use it. Scores are not kept for the backward pass: they are computed again, a block of queries at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
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

log = logging.getLogger(__name__)
PACKED = "packed"  # the name of this implementation
_QUERIES_A_BLOCK = 128  # few, because a block leaves out the keys behind it; enough for an efficient product
_NOT_DONE = ("softcap", "s_aux", "position_bias")  # what some models ask of their attention besides


class CannotPackError(Exception):
    """The model asks for what attention inside each example does not do; says what, after "its attention"."""


@dataclass(frozen=True)
class Packing:
    """Where the examples of a row lie: their lengths in tokens, in order; what is behind them belongs to none.

    Scores are computed for multiples of `round_to` tokens, for processors that compile a kernel for each shape.
    """

    lengths: tuple[int, ...]
    round_to: int = 1

    def spans(self) -> list[tuple[int, int]]:
        """First token and length of each example."""
        return list(zip(accumulate(self.lengths, initial=0), self.lengths, strict=False))


@dataclass(frozen=True)
class _Masks:
    """What the layers of one kind may see: all tokens before in the example, or what its mask says besides.

    Masks have shape (tokens, tokens) and are True where nothing may be seen.
    """

    packing: Packing
    hidden: list[torch.Tensor] | None = None


_CURRENT: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed_as(packing: Packing) -> Iterator[None]:
    """Within it a forward pass of a model with this attention takes its row to be packed so."""
    token = _CURRENT.set(packing)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_packing() -> Packing | None:
    """How the row that goes through the model at present is packed; None where it is not."""
    return _CURRENT.get()


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
) -> _Masks | torch.Tensor | None:
    """What transformers hands to the layers in place of a mask over the whole row."""
    packing = _CURRENT.get()
    if packing is None:
        return sdpa_mask(mask_function=mask_function, use_vmap=use_vmap, device=device, **others)
    if use_vmap:
        raise CannotPackError("is masked by rules of its own")
    if torch.device(device).type == "meta":
        return _Masks(packing)
    none = torch.zeros((), dtype=torch.long, device=device)
    rows = [torch.arange(start, start + length, device=device) for start, length in packing.spans()]
    # Where the last token of an example sees all before it, no window or chunk ends within the example.
    last = [mask_function(none, none, places[-1:, None], places[None, :]).flatten() for places in rows]
    if bool(torch.cat(last).all()):
        return _Masks(packing)
    return _Masks(packing, [~mask_function(none, none, places[:, None], places[None, :]) for places in rows])


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: _Masks | torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query (1, heads, tokens, size), key and value maybe with fewer heads.

    Returns (1, tokens, heads, size). A row that is not packed goes to torch's own attention.
    """
    if not isinstance(attention_mask, _Masks):
        if _CURRENT.get() is not None:
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
        out: torch.Tensor = _OnProcessor.apply(query, key, value, attention_mask, scale)
        return out, None
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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, masks: _Masks, dropout: float, scale: float
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


class _OnProcessor(torch.autograd.Function):
    """Matrix products and softmax in blocks: in 16 bits nearly twice as fast as torch's fused kernel on a processor."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, masks: _Masks, scale: float
    ) -> torch.Tensor:
        out = _empty_rows(value, query, masks.packing)
        for number, (start, length) in enumerate(masks.packing.spans()):
            k, v = _of_example(key, value, query.shape[1], start, length, masks.packing.round_to)
            k.mul_(scale)
            for first, last in _blocks(length, k.shape[1]):
                weights = _weights(query[0, :, start + first : start + last], _up_to(last, k), masks, number)
                real = min(last, length)
                result = torch.bmm(weights, _up_to(last, v))[:, : real - first]
                out[0, :, start + first : start + real] = result
        ctx.save_for_backward(query, key, value)
        ctx.masks, ctx.scale = masks, scale
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value = tensors = ctx.saved_tensors
        masks, scale = ctx.masks, ctx.scale
        of_query, of_key, of_value = (_empty_rows(t, t, masks.packing) for t in tensors)
        for number, (start, length) in enumerate(masks.packing.spans()):
            k, v = _of_example(key, value, query.shape[1], start, length, masks.packing.round_to)
            k.mul_(scale)
            of_k = of_v = None
            for first, last in reversed(_blocks(length, k.shape[1])):  # the last one sees all keys
                q = query[0, :, start + first : start + last].contiguous()
                gradient = gradients[0][0, start + first : start + last].transpose(0, 1)
                gradient = gradient.clone(memory_format=torch.contiguous_format)
                gradient[:, length - first :] = 0  # these queries belong to another example
                seen_k, seen_v = _up_to(last, k), _up_to(last, v)
                weights = _weights(q, seen_k, masks, number)
                of_v = _added(of_v, torch.bmm(weights.transpose(1, 2), gradient))
                of_scores = torch.bmm(gradient, seen_v.transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_scores, weights, -1, weights.dtype)
                real = min(last, length)
                of_query[0, :, start + first : start + real] = torch.bmm(of_scores, seen_k)[:, : real - first]
                of_k = _added(of_k, torch.bmm(of_scores.transpose(1, 2), q))
            for of_one, whole in ((of_k, of_key), (of_v, of_value)):
                assert of_one is not None
                _sum_groups(of_one[:, :length], whole[0, :, start : start + length])
        of_key.mul_(scale)
        return of_query, of_key, of_value, None, None


def _empty_rows(like: torch.Tensor, heads_of: torch.Tensor, packing: Packing) -> torch.Tensor:
    """For a result (1, heads, tokens, size), zero behind the examples.

    Each token's heads lie side by side in memory, as the layers before and after have them.
    """
    _, heads, tokens, _ = heads_of.shape
    rows = like.new_empty(1, tokens, heads, like.shape[-1])
    rows[:, sum(packing.lengths) :] = 0
    return rows.transpose(1, 2)


def _added(of_all: torch.Tensor | None, of_first: torch.Tensor) -> torch.Tensor:
    """The sum of a block's gradient for the keys it sees and that of the blocks behind it, which see these and more."""
    if of_all is None:
        return of_first
    of_all[:, : of_first.shape[1]] += of_first
    return of_all


def _of_example(
    key: torch.Tensor, value: torch.Tensor, heads: int, start: int, length: int, round_to: int
) -> list[torch.Tensor]:
    """New tensors of key and value of one example for as many heads as there are queries, each (heads, tokens, size).

    Behind its own tokens there may be the first of the next, so that their number is a multiple of `round_to`.
    """
    end = start + -(-length // round_to) * round_to
    parts = (tensor[0, :, start:end] for tensor in (key, value))
    of_all_heads = (part[:, None].expand(-1, heads // len(part), -1, -1) for part in parts)
    return [part.clone(memory_format=torch.contiguous_format).flatten(0, 1) for part in of_all_heads]


def _blocks(length: int, tokens: int) -> list[tuple[int, int]]:
    """The first query of each block and the one behind its last: of an example, rounded up to so many tokens."""
    return [(first, min(first + _QUERIES_A_BLOCK, tokens)) for first in range(0, length, _QUERIES_A_BLOCK)]


def _up_to(last: int, of_heads: torch.Tensor) -> torch.Tensor:
    """The tokens that a block sees, in one piece: products copy what is not, turned around and several times."""
    return of_heads[:, :last].contiguous()


def _sum_groups(of_heads: torch.Tensor, out: torch.Tensor) -> None:
    """Heads that share a key and a value share its gradient."""
    groups = len(of_heads) // len(out)
    out.copy_(of_heads if groups == 1 else of_heads.unflatten(0, (len(out), groups)).sum(1))


@lru_cache(maxsize=2 * _QUERIES_A_BLOCK)
def _later(queries: int, dtype: torch.dtype) -> torch.Tensor:
    """Minus infinity above the diagonal of (queries, queries), for the keys that come after a query; 0 elsewhere."""
    return torch.full((queries, queries), float("-inf"), dtype=dtype).triu_(1)


def _weights(query: torch.Tensor, key: torch.Tensor, masks: _Masks, number: int) -> torch.Tensor:
    """The attention of an example's queries to its tokens up to the last of them, (heads, queries, keys)."""
    queries, keys = query.shape[1], key.shape[1]
    first = keys - queries
    scores = torch.bmm(query, key.transpose(1, 2))
    scores[:, :, first:] += _later(queries, scores.dtype)
    if masks.hidden is not None:
        hidden = masks.hidden[number][first:keys, :keys]
        scores[:, : hidden.shape[0], : hidden.shape[1]].masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1)
