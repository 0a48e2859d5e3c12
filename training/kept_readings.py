"""What a model has read of the last conversations, kept so that the next turn reads only what is new in it.

The keys and values of a prompt depend, in their last digits, on the pieces in which it was read. So a prompt is always
read in the same ones, turn by turn, whether its beginning is kept or not: an answer is the same either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

Key = tuple[Path, int]  # the folder of an adapter, and when it was saved
_MOST_KEPT = 4  # two conversations in which both the adapter and the base model answer
_ROOM = 256  # tokens for which a layer makes room at once


class RoomyLayer(DynamicLayer):
    """A layer's keys and values with room to grow: a new token is written behind them instead of copying them all."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, the new ones of shape (batch, heads, tokens, width) at their end."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._all_keys, self._all_values = key_states[:, :, :0], value_states[:, :, :0]
        past = self.get_seq_length()
        end = past + key_states.shape[-2]
        if end > self._all_keys.shape[-2]:
            self._all_keys = self._larger(self._all_keys, past, end)
            self._all_values = self._larger(self._all_values, past, end)
        self._all_keys[:, :, past:end] = key_states
        self._all_values[:, :, past:end] = value_states
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values

    @staticmethod
    def _larger(old: torch.Tensor, past: int, end: int) -> torch.Tensor:
        new = old.new_empty((*old.shape[:2], end + max(_ROOM, end // 4), old.shape[-1]))
        new[:, :, :past] = old[:, :, :past]
        return new


@dataclass
class Reading:
    """The prompt that a model has read, and after how many of its tokens each piece ended."""

    key: Key | None  # the adapter that read it; None: the base model alone
    ids: list[int]
    ends: list[int]
    cache: Cache = field(repr=False)

    def shared(self, ids: list[int], ends: list[int]) -> int:
        """How many tokens of another prompt were read in the same pieces; its last piece has to be read in any case."""
        common = 0
        for own, other in zip(self.ends, ends[:-1], strict=False):
            if own != other or self.ids[common:own] != ids[common:own]:
                break
            common = own
        return common

    def cut(self, length: int) -> None:
        """Forget what comes after so many tokens."""
        self.cache.crop(length - self.cache.get_seq_length())


class Readings:
    """The readings of one base model, with and without its adapters; the oldest make room for new ones."""

    def __init__(self) -> None:
        self._kept: list[Reading] = []

    def begin(self, model: PreTrainedModel, key: Key | None, ids: list[int], ends: list[int]) -> Reading | None:
        """A reading of the prompt as far as it is known, taken out of those kept; None for a model that cannot do it.

        `ends` tells after how many tokens the prompt's pieces end; the last is its length.
        """
        found = max(
            (kept for kept in self._kept if kept.key == key), key=lambda kept: kept.shared(ids, ends), default=None
        )
        if found and (known := found.shared(ids, ends)):
            self._kept.remove(found)
            found.cut(known)
            return Reading(key, ids, ends, found.cache)
        cache = roomy_cache(model)
        return Reading(key, ids, ends, cache) if cache else None

    def keep(self, reading: Reading) -> None:
        """Keep what was read of the prompt. The answer's own tokens, read one by one, are cut off by the next turn."""
        self._kept = [*self._kept, reading][-_MOST_KEPT:]

    def clear(self) -> bool:
        """Forget them all; whether there were any."""
        there_were = bool(self._kept)
        self._kept = []
        return there_were


def roomy_cache(model: PreTrainedModel) -> Cache | None:
    """An empty cache for a model each of whose layers keeps all keys and values; None for any other.

    Sliding windows and states cannot be cut back, and code that came with a model may do as it likes.
    """
    if model.config.is_encoder_decoder or model.is_remote_code():
        return None
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return Cache(layers=[RoomyLayer() for _ in layers])


def read_ahead(model: PreTrainedModel, reading: Reading, stopped: Callable[[], bool]) -> bool:
    """Read the pieces of the prompt that are not known yet, but for the last, with which an answer begins.

    Whether it came to the end of them before `stopped` said so.
    """
    with torch.no_grad():
        for end in reading.ends[:-1]:
            known = reading.cache.get_seq_length()
            if end <= known:
                continue
            if stopped():
                return False
            ids = torch.tensor([reading.ids[known:end]], device=model.device)
            model.base_model(input_ids=ids, past_key_values=reading.cache, use_cache=True)
    return True
