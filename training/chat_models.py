"""The one base model that the chat keeps in memory, with the adapters and tokenizers it was asked for lately.

torch and transformers are imported when something is loaded, so that a page that only offers a chat opens fast.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from training.adapters import adapter_folder
from training.base_models import local_base_model
from training.begun_here import was_begun_here
from training.errors import UserError
from training.libraries import load_libraries
from training.paths import Folders
from training.runs import find_run, is_adapter
from training.settings import Precision, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.adapter_shelf import AdapterShelf
    from training.generation import Speaker
    from training.kept_readings import Readings


@dataclass(frozen=True)
class ChatModel:
    """What to talk to: a base model, and on it the final adapter of a run, or the one of its checkpoint at a step."""

    base_model: str
    adapter: str | None = None
    checkpoint: int | None = None
    precision: Precision = "16-bit"


_TOKENIZERS_KEPT = 4
Origin = tuple[str, Precision, int]  # where a base's weights come from, in which precision, and when they were saved
Voice = tuple[str, int]  # what a tokenizer was saved with, and when


@dataclass
class Loaded:
    """What is in memory; `ends` has the tokens that end an answer with each of the tokenizers."""

    origin: Origin
    shelf: AdapterShelf
    readings: Readings
    tokenizers: dict[Voice, PreTrainedTokenizerBase] = field(default_factory=dict)
    ends: dict[Voice, list[int]] = field(default_factory=dict)

    def remember(self, speaks: Voice, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep the tokenizer with the few that were used last; large vocabularies take tens of megabytes."""
        self.tokenizers.pop(speaks, None)
        self.tokenizers[speaks] = tokenizer
        while len(self.tokenizers) > _TOKENIZERS_KEPT:
            oldest = next(iter(self.tokenizers))
            del self.tokenizers[oldest]
            self.ends.pop(oldest, None)

    def clear(self) -> bool:
        """Forget what can be spared; whether there was anything."""
        return self.readings.clear() | self.shelf.clear()


class ChatModels:
    """Has ready whom the chat asks for, loading as little as it takes. For one thread at a time."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self.loaded: Loaded | None = None

    def ready(self, what: ChatModel, *, with_adapter: bool, loading: Callable[[str], None]) -> Speaker:
        """Who answers: the model as asked, or with the tokenizer of its adapter its base alone. Raises UserError.

        `loading` is told what is read from the disk, if anything is.
        """
        settings = self._settings(what)
        source = local_base_model(self._folders, what.base_model, run_code=settings.trust_remote_code)
        adapter = adapter_folder(self._folders, what.adapter, what.checkpoint) if what.adapter else None
        if adapter and not is_adapter(adapter):  # full fine-tuning left a whole model
            source, adapter = str(adapter) if with_adapter else source, None
        origin = source, what.precision, _saved(Path(source))
        key = (adapter, _saved(adapter)) if adapter else None
        speaks = (str(adapter), _saved(adapter)) if adapter else (f"{source} {what.adapter or ''}", origin[2])
        loaded = self.loaded
        # Forgotten until all has gone well: an adapter that fails halfway leaves its base unfit for use.
        self.loaded = None
        if loaded and (loaded.origin != origin or not loaded.shelf.can_wear(key if with_adapter else None)):
            loaded = None
        if not loaded:
            loading(what.base_model)
        elif speaks not in loaded.tokenizers or (with_adapter and not loaded.shelf.has(key)):
            loading(what.adapter or what.base_model)
        load_libraries()
        tokenizer = (loaded.tokenizers.get(speaks) if loaded else None) or self._tokenizer(source, what, settings)
        if not loaded:
            self.drop()
            loaded = _load(origin, settings)
        loaded.remember(speaks, tokenizer)
        speaker = _speaker(loaded, key, speaks, with_adapter=with_adapter)
        self.loaded = loaded
        return speaker

    def drop(self) -> None:
        """Free the memory."""
        self.loaded = None
        gc.collect()
        if "torch" in sys.modules:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _settings(self, what: ChatModel) -> Settings:
        """How to load: code of the model's own runs only where it was allowed to in the training."""
        try:
            trusted = bool(what.adapter) and find_run(self._folders, str(what.adapter)).settings().trust_remote_code
            trusted = trusted and was_begun_here(self._folders.loras / str(what.adapter))
        except UserError:
            trusted = False  # the adapter comes from elsewhere
        return Settings(precision=what.precision, trust_remote_code=trusted)

    def _tokenizer(self, source: str, what: ChatModel, settings: Settings) -> PreTrainedTokenizerBase:
        """With the template of the training: the one saved with the adapter, else what the training would take."""
        from training.chat_templates import OWN, use_template
        from training.model import load_tokenizer

        run = find_run(self._folders, what.adapter) if what.adapter else None
        if run and run.has_tokenizer():
            tokenizer = load_tokenizer(str(run.folder), trust_remote_code=settings.trust_remote_code)
            if tokenizer.chat_template:
                return tokenizer
        tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
        use_template(tokenizer, self._folders, OWN)
        return tokenizer


def _saved(folder: Path) -> int:
    """When what is in the folder was saved, which another training under its name changes; 0 for a Hub name."""
    return folder.stat().st_mtime_ns if folder.is_dir() else 0


def _load(origin: Origin, settings: Settings) -> Loaded:
    from training.adapter_shelf import AdapterShelf
    from training.kept_readings import Readings
    from training.model import device, load_base

    if device().type == "cpu" and settings.precision == "16-bit":
        # A token at a time there is little to multiply, and a processor's short products only add their overhead.
        settings = settings.model_copy(update={"precision": "32-bit"})
    return Loaded(origin, AdapterShelf(load_base(origin[0], settings).eval()), Readings())


def _speaker(loaded: Loaded, key: tuple[Path, int] | None, speaks: Voice, *, with_adapter: bool) -> Speaker:
    from training.generation import Speaker, end_tokens

    tokenizer = loaded.tokenizers[speaks]
    # The base has no rows for tokens that an adapter added: it borrows the adapter's.
    if not with_adapter and len(tokenizer) <= loaded.shelf.rows:
        key = None
    model = loaded.shelf.wear(key, tokenizer)
    if speaks not in loaded.ends:
        loaded.ends[speaks] = end_tokens(model, tokenizer)
    base_alone = bool(key) and not with_adapter
    return Speaker(model, tokenizer, loaded.ends[speaks], loaded.readings, key, base_alone=base_alone)
