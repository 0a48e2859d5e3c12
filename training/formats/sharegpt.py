"""The shape of ShareGPT and Vicuna: conversations of from and value."""

from __future__ import annotations

from training.formats.messages import turns_format
from training.formats.turns import CONVERSATIONS

FORMAT = turns_format("sharegpt", "conversations: a list of from (human, gpt) and value", *CONVERSATIONS)
