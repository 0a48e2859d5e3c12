"""How fast this machine multiplies matrices of a model's shapes: the limit that no training of it can pass."""

from __future__ import annotations

import time

import torch

from benchmarks.shapes import Shape

_ROWS = 2048  # tokens at once, about as many as a micro-batch has
_LEAST_SECONDS = 0.5  # of work in one measurement


class MatrixRate:
    """The matrices of one layer, there and back, without anything else: results go where they went before."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        self._pairs = []
        self.operations = 0  # of one pass
        for inside, out in set(shape.linears().values()):
            share = sum(sizes == (inside, out) for sizes in shape.linears().values())
            weight = torch.randn(out, inside, dtype=dtype, device=device)
            rows = torch.randn(_ROWS, inside, dtype=dtype, device=device)
            gradient = torch.randn(_ROWS, out, dtype=dtype, device=device)
            self._pairs.append((weight, rows, gradient, share))
            self.operations += 2 * 2 * _ROWS * inside * out * share
        self._forward = [torch.empty_like(gradient) for _, _, gradient, _ in self._pairs]
        self._backward = [torch.empty_like(rows) for _, rows, _, _ in self._pairs]

    def measure(self) -> float:
        """Operations a second."""
        self._pass()
        self._finish()
        passes, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < _LEAST_SECONDS:
            self._pass()
            self._finish()
            passes += 1
        return self.operations * passes / seconds

    def _pass(self) -> None:
        """As the layers of the model do: y = x Wᵀ there, dx = dy W back."""
        for (weight, rows, gradient, share), there, back in zip(
            self._pairs, self._forward, self._backward, strict=True
        ):
            for _ in range(share):
                torch.mm(rows, weight.t(), out=there)
                torch.mm(gradient, weight, out=back)

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
