"""The sizes of a model on disk, of any family: read off the model itself, made without its weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from training.lora_arithmetic import Linear, Shape
from training.model_facts import CONFIG
from training.modules import linear_sizes
from training.skeleton import skeleton

# The layers that hold queries and values, as the families call them; only where all of a line are there.
_QUERY_AND_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("Wq", "Wv"),
    ("project_q", "project_v"),
    # DeepSeek and its kin press keys and values together, and in the larger models the queries too.
    ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    # Queries, keys and values in one.
    ("query_key_value",),
    ("c_attn",),
    ("qkv_proj",),
    ("Wqkv",),
    ("W_pack",),
    ("qkv",),
    ("in_proj_qkv",),
    ("in_proj_qkvz",),
)


def shape_of(source: str, name: str) -> Shape:
    """The sizes of the model in the folder `source`, called `name`, with every linear layer by its full name.

    Raises UserError as `skeleton` does; a model's own code is never run for it.
    """
    return _shape(source, name, (Path(source) / CONFIG).stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _shape(source: str, name: str, _changed: int) -> Shape:
    model = skeleton(source)
    linears = tuple(Linear(*sizes) for sizes in linear_sizes(model))
    everything = sum(parameter.numel() for parameter in model.parameters())
    other = everything - sum(linear.inputs * linear.outputs for linear in linears)
    return Shape(name, 1, linears, other, _query_and_value(linear.name for linear in linears))


def _query_and_value(names: Iterable[str]) -> tuple[str, ...]:
    last_parts = {full: full.rsplit(".", 1)[-1] for full in names}
    there = set(last_parts.values())
    wanted = {last for line in _QUERY_AND_VALUE if there.issuperset(line) for last in line}
    return tuple(full for full, last in last_parts.items() if last in wanted)
