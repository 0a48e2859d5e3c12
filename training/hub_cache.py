"""The models in the Hugging Face cache that are there in whole."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

from training.errors import UserError
from training.model_facts import CONFIG, ModelFacts, facts_of

_PREFIX = "models--"


def cache_folder(given: Path | None) -> Path:
    """The cache that is meant: `given`, or the one that huggingface_hub is set to."""
    return given or Path(constants.HF_HUB_CACHE)


def model_folder(cache: Path, repo_id: str) -> Path:
    """Where the cache keeps a model's files and versions."""
    return cache / f"{_PREFIX}{repo_id.replace('/', '--')}"


def cached_model(cache: Path, repo_id: str) -> tuple[Path, ModelFacts] | None:
    """The newest version of a model of which no file is missing, and its facts; None when there is none.

    Weights are downloaded after everything else, so a version with all of its weights has the rest too.
    """
    for folder in _versions(model_folder(cache, repo_id)):
        try:
            facts = facts_of(folder, repo_id)
        except UserError:
            continue  # its config is not there yet
        if facts.whole:
            return folder, facts
    return None


def cached_models(cache: Path) -> list[tuple[str, ModelFacts]]:
    """The whole models of the cache by their names on the Hub, sorted."""
    if not cache.is_dir():
        return []
    names = [path.name.removeprefix(_PREFIX).replace("--", "/") for path in cache.glob(f"{_PREFIX}*")]
    found = ((name, cached_model(cache, name)) for name in sorted(names, key=str.lower) if "/" in name)
    return [(name, model[1]) for name, model in found if model]


def _versions(folder: Path) -> list[Path]:
    """The versions that have a config: that of the main branch first, then the newest."""
    versions = [path.parent for path in folder.glob(f"snapshots/*/{CONFIG}")]
    main = folder / "refs" / "main"
    current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    return sorted(versions, key=lambda path: (path.name != current, -path.stat().st_mtime))
