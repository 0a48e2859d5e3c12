"""Which rank a finished LoRA really used: the singular values of its update of each layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, FiniteFloat, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open

from training.errors import UserError
from training.json_files import read_small_json
from training.runs import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_A = re.compile(r"\.lora_(embedding_)?A(\.weight)?$")
_LAYER = re.compile(r"\.(\d+)\.")
# Initialisations that take parts of the base weight, so that B A is not zero when training begins.
_NEARLY_ALL, _HALF = 0.85, 0.5  # of the rank
_BEGUN_FROM_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Update:
    """The update of one layer: alpha/r times B A."""

    module: str  # its whole name in the model
    layer: int | None  # the first number in the name; None for one that stands outside the blocks
    rank: int
    values: tuple[float, ...]  # singular values, largest first; at most as many as the rank

    @property
    def name(self) -> str:
        """The last part of the module's name, q_proj for example."""
        return self.module.rsplit(".", 1)[-1]

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values divided by their sum (Roy & Vetterli, 2007); 0 for no update."""
        total = sum(self.values)
        if total == 0:
            return 0.0
        shares = (value / total for value in self.values)
        return math.exp(-sum(share * math.log(share) for share in shares if share > 0))

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        return math.hypot(*self.values)


@dataclass(frozen=True)
class Spectrum:
    """The updates of all layers of an adapter, in the order of the layers."""

    updates: tuple[Update, ...]
    is_dora: bool  # the values are those of B A; what DoRA's magnitudes do comes on top
    begun_as: str  # the initialisation, where it had a B A that was not zero; else empty
    whole_modules: tuple[str, ...]  # trained in full beside the LoRA, and not shown

    @property
    def ranks(self) -> tuple[int, int]:
        """The lowest and the highest rank."""
        ranks = [update.rank for update in self.updates]
        return min(ranks), max(ranks)

    @property
    def effective_rank(self) -> float:
        """The mean over the layers."""
        return sum(update.effective_rank for update in self.updates) / len(self.updates)

    @property
    def used_share(self) -> float:
        """The mean of effective rank over rank: 1 where all directions count alike."""
        return sum(update.effective_rank / update.rank for update in self.updates) / len(self.updates)


class _Config(BaseModel):
    """What adapter_config.json says about the scaling."""

    peft_type: str
    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None

    def rank_of(self, module: str) -> int:
        return next((rank for name, rank in (self.rank_pattern or {}).items() if _matches(name, module)), self.r)

    def scaling_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alphas = (alpha for name, alpha in (self.alpha_pattern or {}).items() if _matches(name, module))
        alpha, rank = next(alphas, self.lora_alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matches(pattern: str, module: str) -> bool:
    """As PEFT matches: the pattern is the end of the name, or a regular expression for it."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def spectrum(folder: Path) -> Spectrum:
    """The singular values of the LoRA in a folder; the one seen last is remembered for as long as its files stay.

    Raises UserError for other kinds of adapters and for files that are damaged.
    """
    try:
        dates = tuple((folder / name).stat().st_mtime_ns for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    except OSError:
        raise UserError(f"There is no finished adapter in '{folder.name}': choose another LoRA.") from None
    return _spectrum(folder, dates)


def verdict(spectrum: Spectrum) -> str:
    """One plain sentence on how much of the rank is used, and which other rank to try."""
    low, high = spectrum.ranks
    used, share = spectrum.effective_rank, spectrum.used_share
    if used == 0:
        return "This LoRA changes nothing: B is zero in every layer, as it is before the first step."
    rank = f"rank {high}" if low == high else f"ranks {low} to {high}"
    said = f"Of {rank}, this LoRA uses about {used:.1f}"
    if share >= _NEARLY_ALL:
        return f"{said}, which is nearly all of it: a higher rank may learn more."
    if share >= _HALF or low != high or low == 1:
        return f"{said}: the rank suits what was learnt."
    return f"{said}: a lower rank, such as {max(1, 2 ** math.ceil(math.log2(used)))}, would probably do as well."


@lru_cache(maxsize=8)
def _spectrum(folder: Path, dates: tuple[int, ...]) -> Spectrum:
    config = _read_config(folder)
    try:
        updates = list(_updates(folder, config))
    except re.error as error:
        raise UserError(
            f"The {ADAPTER_CONFIG} of '{folder.name}' has a pattern that cannot be read ({error})."
        ) from None
    if not updates:
        raise UserError(f"The adapter in '{folder.name}' holds no LoRA matrices: choose another.")
    updates.sort(key=lambda update: -1 if update.layer is None else update.layer)
    begun_as = str(config.init_lora_weights).lower()
    return Spectrum(
        tuple(updates),
        config.use_dora,
        str(config.init_lora_weights) if begun_as.startswith(_BEGUN_FROM_BASE) else "",
        tuple(config.modules_to_save or ()),
    )


def _read_config(folder: Path) -> _Config:
    try:
        values = read_small_json(folder / ADAPTER_CONFIG)
        kind = values.get("peft_type")
        if kind == "LORA":
            config = _Config.model_validate(values)
    except (OSError, ValueError, AttributeError, ValidationError):
        raise UserError(f"The {ADAPTER_CONFIG} of '{folder.name}' is damaged: choose another LoRA.") from None
    if kind != "LORA":
        raise UserError(
            f"'{folder.name}' is an adapter of the kind {kind}, which has no B and A to look into: choose a LoRA."
        )
    if config.target_parameters:
        raise UserError(
            f"'{folder.name}' has a B and A for each expert of a layer, which cannot be shown: choose another LoRA."
        )
    return config


def _updates(folder: Path, config: _Config) -> Iterator[Update]:
    try:
        # By way of torch, which numpy's reader of bfloat16 would need as well.
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                other = re.sub(r"A(\.weight)?$", r"B\1", name)
                if _A.search(name) and other in names:
                    module = _A.sub("", name).removeprefix(_PREFIX)
                    a, b = file.get_tensor(name), file.get_tensor(other)
                    if a.ndim == b.ndim > 2:
                        raise UserError(
                            f"'{folder.name}' has a B and A on a convolution layer ({module}), which cannot be shown: "
                            "choose another LoRA."
                        )
                    yield _update(module, a, b, config)
    except (SafetensorError, OSError):
        raise _damaged(folder) from None
    except _WrongNumbersError as error:
        raise _damaged(folder, str(error)) from None


class _WrongNumbersError(Exception):
    """What is wrong with the matrices of a layer."""


def _damaged(folder: Path, why: str = "its file is not whole") -> UserError:
    return UserError(
        f"The adapter in '{folder.name}' is damaged ({why}): choose another LoRA or an earlier checkpoint of it."
    )


def _update(module: str, a: torch.Tensor, b: torch.Tensor, config: _Config) -> Update:
    rank = config.rank_of(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise _WrongNumbersError(f"{module} has other sizes than rank {rank} asks for")
    a, b = a.float(), b.float()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise _WrongNumbersError(f"{module} holds numbers that are not finite")
    found = _LAYER.search(f".{module}.")
    values = _singular_values(a, b) * abs(config.scaling_of(module))
    return Update(module, int(found[1]) if found else None, rank, tuple(values.tolist()))


def _singular_values(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Those of B A (B: d x r, A: r x k), without the d x k product: its Q factors turn nothing but directions.

    With B = Q R and A^T = Q' R' the product is Q (R R'^T) Q'^T, so the small R R'^T has the same singular values.
    """
    import torch  # here, because it takes seconds to be imported

    right = torch.linalg.qr(a.T, mode="r").R.double()
    left = torch.linalg.qr(b, mode="r").R.double()
    return torch.linalg.svdvals(left @ right.T)
