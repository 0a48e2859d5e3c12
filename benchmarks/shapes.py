"""Llama shapes of several sizes, and the arithmetic that a LoRA training of one cannot do without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_POSITIONS = 4096  # more than any case has tokens in a row
_FROZEN = 4  # operations a weight and token: 2 on the way there, 2 for the gradient of the input
_TRAINED = 6  # 2 more for the gradient of the weight
_ATTENTION = 12  # operations a pair of tokens and width: 4 on the way there (scores, mixture), 8 on the way back


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; `tied` says that head and embedding are one."""

    name: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = True

    def config(self, attention: str = "sdpa") -> Any:
        """What transformers makes the model of."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=_POSITIONS,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,  # as the starter's tokenizer has them
            attn_implementation=attention,
        )

    def linears(self) -> dict[str, tuple[int, int]]:
        """Features in and out of the linear layers that each layer of the model has, by their name in it."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, query),
            "self_attn.k_proj": (self.hidden, key),
            "self_attn.v_proj": (self.hidden, key),
            "self_attn.o_proj": (query, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    def linear_parameters(self) -> int:
        """Weights of the linear layers, without the head."""
        return self.layers * sum(inside * out for inside, out in self.linears().values())

    def lora_parameters(self, rank: int) -> int:
        """Weights of a LoRA on all of them."""
        return self.layers * sum(rank * (inside + out) for inside, out in self.linears().values())

    def operations(self, rank: int, rows: Iterable[tuple[int, int]]) -> int:
        """The least floating-point operations that training one step on `rows` takes: (tokens, trained tokens) each.

        Frozen weights there and back, the LoRA with its own gradients, causal attention inside each row, and the head
        where a token is trained. Norms and the like are left out, as is recomputing.
        """
        rows = list(rows)
        tokens, trained = sum(length for length, _ in rows), sum(count for _, count in rows)
        pairs = sum(length * (length + 1) // 2 for length, _ in rows)
        linear = tokens * (_FROZEN * self.linear_parameters() + _TRAINED * self.lora_parameters(rank))
        attention = _ATTENTION * pairs * self.heads * self.head_dim * self.layers
        return linear + attention + _FROZEN * trained * self.hidden * self.vocabulary


ON_PROCESSOR = (
    Shape("5M", 256, 6, 640, 4, 2, 64, 4096),
    Shape("27M", 512, 8, 1408, 8, 8, 64, 4096),
    Shape("130M", 1024, 12, 2560, 16, 4, 64, 4096),
)
ON_GPU = (
    Shape("1B", 2048, 16, 8192, 32, 8, 64, 128_256),
    Shape("8B", 4096, 32, 14_336, 32, 8, 128, 128_256, tied=False),
)
SHAPES = {shape.name: shape for shape in (*ON_PROCESSOR, *ON_GPU)}
