"""Counts without a model: how many numbers a LoRA trains at each rank, and how much memory weights take.

The layers of a few well-known models are written down here; training.model_shape reads those of a model on disk.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BITS = (32, 16, 8, 4)
CARDS = (8, 12, 16, 24, 48, 80)  # GB of memory of common graphics cards
GB = 2**30  # bytes, as graphics cards count
# NF4 keeps a 32-bit constant for each 64 weights; quantized again they take 8/64 + 32/(64 * 256) bits a weight (QLoRA).
NF4_CONSTANTS = 8 / 64 + 32 / (64 * 256)
# 32-bit weight, gradient and AdamW's two moments; or 16-bit weight and gradient, 32-bit copy and the two moments.
ADAMW_BYTES = 16
_USABLE = 0.9  # of a card: the system, the libraries and a first batch need the rest


@dataclass(frozen=True)
class Linear:
    """A linear layer, `outputs` x `inputs` numbers; a LoRA on it has r x inputs in A and outputs x r in B."""

    name: str
    inputs: int
    outputs: int

    def lora_size(self, rank: int) -> int:
        """The numbers in A and B."""
        return rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: the linear layers of one block, how many blocks, and the numbers in all the rest."""

    name: str
    blocks: int
    linears: tuple[Linear, ...]
    other: int
    query_and_value: tuple[str, ...] = ("q_proj", "v_proj")  # empty where a model has no such layers

    @property
    def parameters(self) -> int:
        """All numbers of the model."""
        return self.linear_parameters + self.other

    @property
    def linear_parameters(self) -> int:
        """The numbers in the linear layers of the blocks: what 8-bit and 4-bit loading quantizes."""
        return self.blocks * sum(linear.inputs * linear.outputs for linear in self.linears)

    def trainable(self, rank: int, targets: Collection[str] | None = None) -> int:
        """The numbers a LoRA of this rank trains on the layers named in `targets`, or on all linear layers."""
        chosen = (linear for linear in self.linears if targets is None or linear.name in targets)
        return self.blocks * sum(linear.lora_size(rank) for linear in chosen)


def weight_bytes(parameters: int, bits: int) -> float:
    """What so many numbers take at 32, 16, 8 or 4 bits; 4 is NF4 with double quantization, constants included."""
    return parameters * (bits + (NF4_CONSTANTS if bits == 4 else 0)) / 8


def loaded_bytes(shape: Shape, bits: int) -> float:
    """What the model takes as it is really loaded: at 8 and 4 bits all but the linear layers stays in 16 bits."""
    if bits >= 16:
        return weight_bytes(shape.parameters, bits)
    return weight_bytes(shape.linear_parameters, bits) + weight_bytes(shape.other, 16)


def smallest_card(needed: float) -> int | None:
    """The smallest common card, in GB, of which `needed` bytes fill at most nine tenths; None where none is enough."""
    return next((card for card in CARDS if needed <= _USABLE * card * GB), None)


def _llama(name: str, sizes: tuple[int, int, int, int, int], vocabulary: int) -> Shape:
    """Llama's blocks, without biases and with two norms; the head is not the embedding."""
    hidden, inner, blocks, heads, key_heads = sizes
    keys = hidden // heads * key_heads
    linears = (
        Linear("q_proj", hidden, hidden),
        Linear("k_proj", hidden, keys),
        Linear("v_proj", hidden, keys),
        Linear("o_proj", hidden, hidden),
        Linear("gate_proj", hidden, inner),
        Linear("up_proj", hidden, inner),
        Linear("down_proj", inner, hidden),
    )
    norms = hidden * (2 * blocks + 1)
    return Shape(name, blocks, linears, 2 * vocabulary * hidden + norms)


def _falcon(name: str, hidden: int, blocks: int, key_heads: int, vocabulary: int) -> Shape:
    """Falcon's blocks: heads of 64, queries, keys and values in one layer, two norms with biases, no gate."""
    linears = (
        Linear("query_key_value", hidden, hidden + 2 * key_heads * 64),
        Linear("dense", hidden, hidden),
        Linear("dense_h_to_4h", hidden, 4 * hidden),
        Linear("dense_4h_to_h", 4 * hidden, hidden),
    )
    norms = 2 * hidden * (2 * blocks + 1)
    return Shape(name, blocks, linears, 2 * vocabulary * hidden + norms, query_and_value=("query_key_value",))


# From the published config.json files: hidden, feed-forward, blocks, heads, key/value heads; vocabulary.
RANK_SHAPES = (
    _llama("Llama 2 7B", (4096, 11008, 32, 32, 32), 32_000),
    _llama("Llama 2 13B", (5120, 13824, 40, 40, 40), 32_000),
    _llama("Llama 2 70B", (8192, 28672, 80, 64, 8), 32_000),
    _falcon("Falcon 180B", 14848, 80, 8, 65_024),
)
MEMORY_SHAPES = (
    _llama("Llama 3.1 8B", (4096, 14336, 32, 32, 8), 128_256),
    _llama("Llama 3.1 70B", (8192, 28672, 80, 64, 8), 128_256),
    _llama("Llama 3.1 405B", (16384, 53248, 126, 128, 8), 128_256),
)
