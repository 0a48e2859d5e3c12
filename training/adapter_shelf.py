"""One base model and the adapters that were on it lately, so that going from one to another reads nothing again.

PEFT puts modules of its own into the places of the base's. Which ones is noted when an adapter is loaded; from then on
it is taken off and put back by exchanging them, and the base's own are as they were.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training import model as models
from training.answer_lora import for_answers
from training.kept_readings import Key

_MOST_KEPT = 4
_SHARE_OF_BASE = 0.25  # the most that all adapters kept may take, beside the base model's own memory
_KEEPS_BASE = ("eva", "gaussian", "orthogonal")  # beginnings of a LoRA that leave the base's weights alone


@dataclass(frozen=True)
class _Swap:
    """A place in the base model, with its own module and the adapter's."""

    parent: nn.Module
    name: str
    own: nn.Module
    adapted: nn.Module


@dataclass(frozen=True)
class _Kept:
    """An adapter that was loaded; `stays`: it has changed the base itself, so that it cannot be taken off."""

    key: Key
    model: Any
    swaps: list[_Swap] = field(default_factory=list)
    stays: bool = False
    size: int = 0  # bytes


class AdapterShelf:
    """The base model with one adapter on it or none. After an error in `wear` it is unfit for use."""

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base
        self.rows = _rows(base)  # tokens the base model has embeddings for
        self._size = sum(parameter.nbytes for parameter in base.parameters())
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()  # the one worn last at the end
        self._worn: _Kept | None = None

    def has(self, key: Key | None) -> bool:
        """Whether it can be worn without loading it."""
        return key is None or key in self._kept

    def can_wear(self, key: Key | None) -> bool:
        """Whether the base model still is what `key` needs: False once an adapter has changed it for good."""
        return self._worn is None or not self._worn.stays or self._worn.key == key

    def wear(self, key: Key | None, tokenizer: PreTrainedTokenizerBase) -> Any:
        """The base model with that adapter on it, or alone; raises UserError when the adapter does not fit.

        The model is the base itself, or a PeftModel where an adapter has to take part in each call.
        """
        assert self.can_wear(key)
        if self._worn and self._worn.key != key:
            self._exchange(self._worn, on=False)
            self._worn = None
        if key is None:
            return self.base
        if not self._worn:
            kept = self._kept.pop(key, None) or self._load(key, tokenizer)
            self._exchange(kept, on=True)
            self._kept[key] = self._worn = kept
            self._make_room()
        return self._worn.model

    def clear(self) -> bool:
        """Forget the adapters that are not worn; whether there were any."""
        idle = [key for key, kept in self._kept.items() if kept is not self._worn]
        for key in idle:
            del self._kept[key]
        return bool(idle)

    def _load(self, key: Key, tokenizer: PreTrainedTokenizerBase) -> _Kept:
        base, (folder, written) = self.base, key
        for older in [k for k in self._kept if k[0] == folder and k[1] != written]:
            del self._kept[older]
        before = [(parent, name, child) for parent in base.modules() for name, child in parent.named_children()]
        weights = [(parameter, parameter.dtype) for parameter in base.parameters()]
        models.fit_embeddings(base, tokenizer)
        loaded = models.load_adapter(base, folder).eval()
        vars(base).pop("peft_config", None)  # PEFT would take the next adapter for an addition to this one
        config = loaded.active_peft_config
        stays = _rows(base) != self.rows or any(p.dtype != dtype for p, dtype in weights) or changes_base(config)
        swaps = [
            _Swap(parent, name, own, parent.get_submodule(name) if stays else for_answers(parent.get_submodule(name)))
            for parent, name, own in before
            if parent.get_submodule(name) is not own
        ]
        known = {id(parameter) for parameter, _ in weights}
        size = sum(p.nbytes for p in loaded.parameters() if id(p) not in known)
        takes_part = stays or config.is_prompt_learning or vars(config).get("alora_invocation_tokens")
        return _Kept(key, loaded if takes_part else base, swaps, stays, size)

    @staticmethod
    def _exchange(kept: _Kept, *, on: bool) -> None:
        for swap in kept.swaps:
            setattr(swap.parent, swap.name, swap.adapted if on else swap.own)

    def _make_room(self) -> None:
        """Forget the adapters that were not worn for longest, until the rest is few and small."""
        while len(self._kept) > 1 and (
            len(self._kept) > _MOST_KEPT or sum(kept.size for kept in self._kept.values()) > _SHARE_OF_BASE * self._size
        ):
            self._kept.popitem(last=False)


def changes_base(config: PeftConfig) -> bool:
    """Whether PEFT, when it loads such an adapter, changes weights of the base: PiSSA and its like, or its biases."""
    told = vars(config)
    beginning = told.get("init_lora_weights", True)
    return (isinstance(beginning, str) and beginning not in _KEEPS_BASE) or told.get("bias", "none") != "none"


def _rows(base: PreTrainedModel) -> int:
    return int(base.get_input_embeddings().weight.shape[0])
