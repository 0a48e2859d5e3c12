"""Puts examples together to micro-batches: one after the other in a single row, or each in a padded row of its own."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.packing import Packing
from training.prepared import IGNORED, Example


@dataclass(frozen=True)
class PackedRow:
    """Examples in one row: input_ids and positions, which begin anew with each, have shape (1, tokens).

    `trained` has the places in the row whose next token counts in the loss, `targets` those next tokens: (trained).
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    trained: torch.Tensor
    targets: torch.Tensor
    packing: Packing


@dataclass(frozen=True)
class PaddedRows:
    """An example a row, padded on the right: input_ids and attention_mask have shape (examples, longest).

    `trained` and `targets` are as in `PackedRow`, with the rows put one behind the other.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    trained: torch.Tensor
    targets: torch.Tensor


def pack(examples: Sequence[Example], filler: int, device: torch.device, round_to: int = 1) -> PackedRow:
    """The examples in one row, filled up behind the last one to a multiple of `round_to` tokens."""
    lengths = tuple(len(e.input_ids) for e in examples)
    rest = -lengths[-1] % round_to  # attention reads as many beyond an example's end
    rest += -(sum(lengths) + rest) % round_to
    ids: list[int] = []
    positions: list[int] = []
    starts = []
    for example in examples:
        starts.append(len(ids))
        ids += example.input_ids
        positions += range(len(example.input_ids))
    trained, targets = _trained(examples, starts)
    return PackedRow(
        _tensor(ids + [filler] * rest, device)[None],
        _tensor([*positions, *range(rest)], device)[None],
        _tensor(trained, device),
        _tensor(targets, device),
        Packing(lengths, round_to),
    )


def pad(examples: Sequence[Example], pad_token_id: int, device: torch.device, round_to: int = 1) -> PaddedRows:
    """The examples in rows as long as the longest, or as the next multiple of `round_to` tokens."""
    longest = -(-max(len(e.input_ids) for e in examples) // round_to) * round_to
    ids: list[int] = []
    mask: list[int] = []
    for example in examples:
        length = len(example.input_ids)
        ids += example.input_ids + [pad_token_id] * (longest - length)
        mask += [1] * length + [0] * (longest - length)
    trained, targets = _trained(examples, [longest * row for row in range(len(examples))])
    return PaddedRows(
        _tensor(ids, device).view(-1, longest),
        _tensor(mask, device).view(-1, longest),
        _tensor(trained, device),
        _tensor(targets, device),
    )


def even_parts(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The numbers of these lengths laid into `count` parts of nearly the same sum, none of them empty.

    The longest go first, each to the part that has least so far (Graham, 1969).
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    least_first = [(0, 0, part) for part in range(count)]  # tokens, examples, part
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        tokens, examples, part = least_first[0]
        parts[part].append(number)
        heapq.heapreplace(least_first, (tokens + lengths[number], examples + 1, part))
    return parts


def parts_within(lengths: Sequence[int], most: int, shared_by: int = 1) -> list[list[int]]:
    """Few even parts whose sums are at most `most`, which is at least the longest of these lengths.

    So many that `shared_by` processes have as much to do each, where there are enough numbers for that.
    """
    count = -(-sum(lengths) // most)
    while True:
        count = min(len(lengths), -(-count // shared_by) * shared_by)
        parts = even_parts(lengths, count)
        if count == len(lengths) or all(sum(lengths[n] for n in part) <= most for part in parts):
            return parts
        count += 1 + count // 64  # few trials, too, for the many parts of an evaluation


def _trained(examples: Sequence[Example], starts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The places before trained tokens, and these tokens; the first of an example has nothing before it."""
    trained: list[int] = []
    targets: list[int] = []
    for example, start in zip(examples, starts, strict=True):
        places = [place for place, label in enumerate(example.labels) if label != IGNORED and place]
        trained += [start + place - 1 for place in places]
        targets += [example.labels[place] for place in places]
    return trained, targets


def _tensor(values: list[int], device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.long)
    if device.type == "cuda":  # the copy goes on while the processor does other things
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
