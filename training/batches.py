"""Puts examples together to the tensors of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training.prepared import IGNORED, Example


def collate(examples: Sequence[Example], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors of shape (examples, longest): input_ids, attention_mask, labels; padded on the right."""
    longest = max(len(e.input_ids) for e in examples)

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)

    return {
        "input_ids": padded([e.input_ids for e in examples], pad_token_id),
        "attention_mask": padded([[1] * len(e.input_ids) for e in examples], 0),
        "labels": padded([e.labels for e in examples], IGNORED),
    }
