"""The loss of a few examples: in one row without padding where the model allows it, else padded.

Whether it does is found out by a trial: two short examples in one row must give what each gives alone. Logits are
made for trained tokens only wherever the model's head can be had alone.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear8bitLt
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from training.batches import PackedRow, PaddedRows, pack, pad
from training.faster_layers import make_faster
from training.head_loss import Head, loss_of_hidden
from training.methods import TrainableModel
from training.modules import has_fused_experts
from training.packed_attention import PACKED, CannotPackError, use_packed_attention
from training.packing import packed_as
from training.prepared import Example

_TRIAL = (7, 12)  # tokens of the examples that are tried
_ROUND_TO = 32  # tokens
_TOLERANCE = 1e-4  # of the largest number, in 32 bits; what reaches over from another example is far above
_SHORT_TOLERANCE = 0.1  # of the root mean square, in 16 bits: with a large LoRA single numbers differ more
_UNLIKE = "the positions or layers of this architecture do not tell the examples of one row apart"
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)
log = logging.getLogger(__name__)


class ExampleLoss:
    """Computes the summed loss of examples with one model, for whose layers it finds the fastest way once.

    `why_padded` says why examples are padded, in words that follow "because"; it is empty where they are not.
    """

    def __init__(
        self,
        model: TrainableModel,
        pad_token_id: int,
        compute: torch.dtype = torch.float32,
        smoothing: float = 0.0,
        computes_on: str | None = None,
    ) -> None:
        """`compute`: what products are computed in, by autocast where that is short.

        `computes_on`: "cpu" or "cuda", for a model without weights that stands for one there.
        """
        self._model = model
        self._pad_token_id = pad_token_id
        self._compute = compute
        self._smoothing = smoothing
        self.device = next(model.parameters()).device
        causal = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(causal, PreTrainedModel)
        self._causal = causal
        self._body: nn.Module = causal.get_decoder()
        self._output: type[ModelOutput] = ModelOutput  # of the body
        # Tokens are added to the model's own by these methods, where only PEFT knows how.
        self._whole = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        self.why_padded = ""
        was_training = model.training
        model.eval()
        with self._autocast():
            self.why_padded = self._why_padded()
            self._whole = self._whole or not self._head_is_alone()
            self._exchanges = make_faster(causal, self._try_body)
        model.train(was_training)
        head = causal.get_output_embeddings()
        vocabulary = causal.get_input_embeddings().weight.shape[0] if head is None else head.weight.shape[0]
        self._head = Head(self._logits, self._trained_in_head(), vocabulary, computes_on or self.device.type)

    @property
    def round_to(self) -> int:
        """Rows hold multiples of so many tokens.

        For products in 16 bits a processor's library compiles a kernel for each shape and keeps it in memory.
        """
        return _ROUND_TO if self.device.type == "cpu" and self._compute != torch.float32 else 1

    def of(self, examples: Sequence[Example]) -> torch.Tensor:
        """Cross entropy summed over the trained tokens of the examples, in nats; a scalar."""
        with self._autocast():
            if self.why_padded:
                return self.of_rows(pad(examples, self._pad_token_id, self.device, self.round_to))
            return self.of_row(pack(examples, self._pad_token_id, self.device, self.round_to))

    def undo(self) -> None:
        """Give the model's layers back what they computed with before."""
        self._exchanges.undo()

    def _autocast(self) -> AbstractContextManager[object]:
        if self._compute == torch.float32 or self.device.type == "meta":
            return nullcontext()
        return torch.autocast(self.device.type, self._compute)

    def of_row(self, row: PackedRow) -> torch.Tensor:
        """The same for examples in one row; not where there is a reason to pad."""
        inputs = {"input_ids": row.input_ids, "position_ids": row.positions, "use_cache": False}
        with packed_as(row.packing):
            if self._whole:
                return self._of_logits(self._causal(**inputs).logits[0][row.trained], row.targets)
            hidden = self._body(**inputs).last_hidden_state
        return self._of_hidden(hidden[0][row.trained], row.targets)

    def of_rows(self, rows: PaddedRows) -> torch.Tensor:
        """The same for padded examples."""
        inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "use_cache": False}
        if not self._whole:
            hidden = self._body(**inputs).last_hidden_state
            return self._of_hidden(hidden.flatten(0, 1)[rows.trained], rows.targets)
        logits = self._model(**inputs).logits
        logits = logits[:, -rows.input_ids.shape[1] :]  # virtual tokens stand before the text
        return self._of_logits(logits.flatten(0, 1)[rows.trained], rows.targets)

    def _of_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=self._smoothing_now())

    def _of_hidden(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss_of_hidden(hidden, targets, self._head, self._smoothing_now())

    def _smoothing_now(self) -> float:
        return self._smoothing if self._model.training else 0.0  # evaluations stay comparable

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, (tokens, vocabulary): all that the model does after its body, with what it does to them there."""

        def forward(*_: object, **__: object) -> ModelOutput:
            return self._output(last_hidden_state=hidden[None])

        ids = torch.zeros((1, hidden.shape[0]), dtype=torch.long, device=hidden.device)
        plain = vars(self._body).get("forward")
        self._body.forward = forward
        try:
            logits: torch.Tensor = self._causal(input_ids=ids, use_cache=False).logits[0]
        finally:
            del self._body.forward
            if plain is not None:
                self._body.forward = plain
        return logits

    def _trained_in_head(self) -> list[torch.Tensor]:
        of_body = {id(p) for p in self._body.parameters()}
        head = self._causal.get_output_embeddings()
        own = [p for p in self._causal.parameters() if id(p) not in of_body]
        tied = [] if head is None else [p for p in head.parameters() if id(p) in of_body]
        return [p for p in (*own, *tied) if p.requires_grad]

    def _why_padded(self) -> str:
        """Why examples cannot share a row; from then on the model's attention is that of packed rows, if they can."""
        if self._whole:
            return "this method puts tokens of its own before each example"
        if self._body is self._causal or "position_ids" not in inspect.signature(self._body.forward).parameters:
            return "this architecture cannot be told where an example begins"
        before = self._causal.config._attn_implementation
        try:
            # Without weights there is nothing to compare.
            alone = [self._try_body(n) for n in range(len(_TRIAL))] if self.device.type != "meta" else []
            use_packed_attention(self._causal)
            found = self._try_body()
            if not alone or (self._agree(torch.cat(alone, dim=1), found) and self._is_independent(found)):
                return ""
            reason = _UNLIKE
        except CannotPackError as error:
            reason = f"the attention of this architecture {error}"
        except _REFUSALS as error:
            log.info("examples are padded", exc_info=error)
            reason = _UNLIKE
        if self._causal.config._attn_implementation == PACKED:
            self._causal.set_attn_implementation(before)
        return reason

    def _is_independent(self, hidden: torch.Tensor) -> bool:
        """Whether the last example is the same whatever stands in the first: rounding hides no small influence here."""
        if any(isinstance(module, Linear8bitLt) for module in self._body.modules()):
            return True  # these look for outliers in all of a row, padded or not
        if has_fused_experts(self._body):  # which round by how many tokens of all examples they get
            return not any(isinstance(module, nn.Conv1d) for module in self._body.modules())
        others = self._try_body(shift=1)
        return torch.equal(hidden[:, _TRIAL[0] :], others[:, _TRIAL[0] :])

    @torch.no_grad()
    def _try_body(self, only: int | None = None, shift: int = 0) -> torch.Tensor:
        """Hidden states of short examples: all of them in one row, or one alone. `shift` changes the first one."""
        vocabulary = self._causal.get_input_embeddings().weight.shape[0]
        made = [Example([(31 * n + 7 * i) % vocabulary for i in range(n)], [], "") for n in _TRIAL]
        made[0] = Example([(token + shift) % vocabulary for token in made[0].input_ids], [], "")
        row = pack(made if only is None else [made[only]], 0, self.device)
        if only is not None or self.why_padded:
            hidden = self._body(input_ids=row.input_ids, use_cache=False).last_hidden_state
        else:
            with packed_as(row.packing):
                hidden = self._body(
                    input_ids=row.input_ids, position_ids=row.positions, use_cache=False
                ).last_hidden_state
        assert isinstance(hidden, torch.Tensor)
        return hidden

    @torch.no_grad()
    def _head_is_alone(self) -> bool:
        """Whether body and head, one after the other, give what the whole model does."""
        try:
            row = pack([Example(list(range(_TRIAL[0])), [], "")], 0, self.device)
            with packed_as(row.packing):
                whole = self._causal(input_ids=row.input_ids, use_cache=False).logits[0]
                output = self._body(input_ids=row.input_ids, use_cache=False)
            self._output = type(output)
            return self._agree(whole, self._logits(output.last_hidden_state[0]))
        except _REFUSALS as error:
            log.info("logits are made for all tokens", exc_info=error)
            return False

    def _agree(self, expected: torch.Tensor, found: torch.Tensor) -> bool:
        if expected.shape != found.shape:
            return False
        if expected.is_meta:  # the shape is all there is to compare
            return True
        apart = (expected - found).float()
        if self._compute == torch.float32 == expected.dtype:
            return bool(apart.abs().max() <= _TOLERANCE * expected.abs().max())
        return bool(apart.norm() <= _SHORT_TOLERANCE * expected.float().norm())
