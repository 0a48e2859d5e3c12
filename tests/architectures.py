"""Twelve families of causal language models, each as a tiny one of random weights."""

from __future__ import annotations

from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
)

VOCABULARY = 288  # at least tests.tiny's tokenizer
_SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": 128, "tie_word_embeddings": False}
_END = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}

# Nothing is left out at random, so that the loss on a repeated batch can only fall. Widths are multiples of 64, which
# bitsandbytes asks for on the CPU.
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZE, **_COMMON, **_END, num_key_value_heads=2),
    "gemma": Gemma3TextConfig(
        **_SIZE,
        **_COMMON | {"tie_word_embeddings": True},
        **_END,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=16,
    ),
    "qwen": Qwen3Config(**_SIZE, **_COMMON | {"tie_word_embeddings": True}, **_END, num_key_value_heads=2, head_dim=32),
    "mistral": MistralConfig(**_SIZE, **_COMMON, **_END, num_key_value_heads=2),
    "phi": PhiConfig(**_SIZE, **_COMMON, **_END),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=64,
        n_layer=2,
        n_head=4,
        embd_pdrop=0,
        resid_pdrop=0,
        attn_pdrop=0,
        **_END,
    ),
    "gpt-neox": GPTNeoXConfig(**_SIZE, **_COMMON, **_END),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        dropout=0,
        **_END,
    ),
    "falcon": FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        new_decoder_architecture=True,
        num_kv_heads=2,
        **_END,
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, **_END),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=64, state_size=8, num_hidden_layers=2, **_END),
    "moe": Qwen2MoeConfig(
        **_SIZE,
        **_COMMON,
        **_END,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
    ),
}
