"""Noise on the embeddings while training, against learning examples by heart."""

from __future__ import annotations

import torch
from torch import nn

from training.methods import TrainableModel
from training.packing import current_packing


def add_noise(model: TrainableModel, alpha: float) -> None:
    """Uniform noise of at most `alpha / sqrt(tokens * features)` of each example (NEFTune, Jain et al., 2023)."""

    def noisy(embeddings: nn.Module, _: object, embedded: torch.Tensor) -> torch.Tensor:
        if not embeddings.training:
            return embedded
        packing = current_packing()
        tokens, features = embedded.shape[1:]
        lengths = (tokens,) if packing is None else (*packing.lengths, tokens - sum(packing.lengths))
        of_token = torch.tensor([alpha / max(n * features, 1) ** 0.5 for n in lengths], device=embedded.device)
        most = of_token.repeat_interleave(torch.tensor(lengths, device=embedded.device))[:, None]
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * most.to(embedded.dtype)

    if alpha > 0:
        model.get_input_embeddings().register_forward_hook(noisy)
