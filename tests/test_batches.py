"""Examples of unlike length in one batch."""

from __future__ import annotations

import torch

from training.batches import collate
from training.prepared import IGNORED, Example


def test_batch_is_padded_on_the_right_and_masked() -> None:
    batch = collate([Example([5, 6, 7], [IGNORED, 6, 7], ""), Example([8], [8], "")], 9, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


def test_example_that_holds_the_padding_token_is_not_masked() -> None:
    batch = collate([Example([9, 6], [9, 6], "")], 9, torch.device("cpu"))
    assert batch["attention_mask"].tolist() == [[1, 1]] and batch["labels"].tolist() == [[9, 6]]
