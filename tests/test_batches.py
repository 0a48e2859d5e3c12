from __future__ import annotations

import random

import torch

from training.batches import even_parts, pack, pad, parts_within
from training.prepared import IGNORED, Example

_CPU = torch.device("cpu")
_LONG = Example([5, 6, 7], [IGNORED, 6, 7], "")
_SHORT = Example([8, 9], [8, 9], "")


def test_padding_is_neither_seen_nor_trained() -> None:
    rows = pad([_LONG, _SHORT], 1, _CPU)
    assert rows.input_ids.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert rows.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert rows.trained.tolist() == [0, 1, 3]
    assert rows.targets.tolist() == [6, 7, 9]


def test_examples_lie_one_after_the_other_in_a_packed_row() -> None:
    row = pack([_LONG, _SHORT], 1, _CPU)
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert row.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert row.trained.tolist() == [0, 1, 3]
    assert row.targets.tolist() == [6, 7, 9]  # the 8 that begins an example has nothing before it
    assert row.packing.lengths == (3, 2)
    assert row.packing.spans() == [(0, 3), (3, 2)]


def test_rows_are_filled_up_to_a_multiple_that_leaves_the_last_example_as_much() -> None:
    for lengths in ((3, 2), (9, 7), (16,), (1, 16, 2), (8, 8)):
        examples = [Example([7] * n, [7] * n, "") for n in lengths]
        row = pack(examples, 1, _CPU, round_to=8)
        assert row.input_ids.shape[1] % 8 == 0
        start, length = row.packing.spans()[-1]
        assert start - (-length // 8) * 8 <= row.input_ids.shape[1] < sum(lengths) + 16
        assert len(row.trained) == sum(lengths) - len(lengths)
        assert pad(examples, 1, _CPU, round_to=8).input_ids.shape[1] % 8 == 0


def test_parts_hold_every_number_once_and_like_sums() -> None:
    chance = random.Random(0)
    for _ in range(50):
        lengths = [chance.randrange(1, 500) for _ in range(chance.randrange(1, 40))]
        count = chance.randrange(1, len(lengths) + 1)
        parts = even_parts(lengths, count)
        assert len(parts) == count and all(parts)
        assert sorted(number for part in parts for number in part) == list(range(len(lengths)))
        sums = [sum(lengths[n] for n in part) for part in parts]
        assert max(sums) - min(sums) <= max(lengths)


def test_many_examples_are_laid_out_at_once() -> None:
    lengths = [1 + n % 500 for n in range(30_000)]
    parts = even_parts(lengths, 7_500)  # by looking at every part for every example this would take minutes
    assert sum(map(len, parts)) == 30_000


def test_parts_are_few_and_none_takes_more_than_allowed() -> None:
    chance = random.Random(0)
    for _ in range(50):
        lengths = [chance.randrange(1, 500) for _ in range(chance.randrange(1, 40))]
        most = max(lengths) * chance.randrange(1, 5)
        parts = parts_within(lengths, most)
        assert sorted(number for part in parts for number in part) == list(range(len(lengths)))
        assert all(part and sum(lengths[n] for n in part) <= most for part in parts)
        assert len(parts) <= 2 * -(-sum(lengths) // most)


def test_every_process_gets_as_many_parts() -> None:
    assert [len(parts_within([10] * 8, 80, shared_by)) for shared_by in (1, 2, 3, 8, 9)] == [1, 2, 3, 8, 8]
    assert len(parts_within([10] * 8, 20, 3)) == 6


def test_many_examples_are_laid_out_within_a_limit_in_a_few_trials() -> None:
    lengths = [1 + n % 500 for n in range(30_000)]
    parts = parts_within(lengths, 2_000)
    assert all(sum(lengths[n] for n in part) <= 2_000 for part in parts)
    assert len(parts) < 1.05 * sum(lengths) / 2_000
