"""The training loop: model and data in, events and checkpoints out. It knows nothing of what shows them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers.integrations.neftune import neftune_post_forward_hook

from training import model as models
from training.batches import collate
from training.checkpoints import Progress, Resumable, delete_old_checkpoints, load_checkpoint, save_checkpoint
from training.data import PreparedData
from training.errors import UserError
from training.events import CheckpointSaved, Evaluation, Started, Step
from training.methods import TrainableModel, is_saved_otherwise
from training.optimization import make_optimizer, make_scheduler
from training.prepared import IGNORED, Example, Examples
from training.runs import Checkpoint, Run
from training.schedule import Schedule
from training.settings import FOLLOW_EVALUATION, Settings

_MAX_SKIPPED_STEPS = 20  # the scaler halves its scale each time: after these it would be a millionth
_MIXED_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Trainer:
    """Trains a model on examples, saving and evaluating as the settings say."""

    def __init__(
        self,
        run: Run,
        settings: Settings,
        model: TrainableModel,
        data: PreparedData,
        pad_token_id: int,
    ) -> None:
        self._run = run
        self._settings = settings
        self._train = data.train
        self._evaluation = data.evaluation
        self._pad_token_id = pad_token_id
        self._progress = Progress()
        self._skipped_in_a_row = 0
        self.schedule = Schedule(len(data.train), settings.batch_size, settings.epochs, settings.seed)
        # Before the accelerator: the TrainingArguments that name the optimizer's class reset accelerate's state.
        optimizer = make_optimizer(model, settings)
        self._accelerator = Accelerator(
            mixed_precision=_MIXED_PRECISION[models.compute_dtype(settings.precision)],
            cpu=models.device().type == "cpu",
        )
        self.model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._scheduler = make_scheduler(optimizer, settings, self.schedule.total_steps)
        # To go on, the trained weights themselves are needed.
        kept = is_saved_otherwise(settings)
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad} if kept else {}
        self._resumable = Resumable(optimizer, self._scheduler, self._accelerator.scaler, weights)
        _add_noise(model, settings.neftune_noise)

    def train(self, resume_from: Checkpoint | None = None) -> bool:
        """Train to the end, or until a stop is asked for, saving at either; returns whether the end was reached."""
        if resume_from:
            self._progress = load_checkpoint(resume_from, self._resumable)
        total = self.schedule.total_steps
        self._run.append(Started(from_step=self._progress.step, total_steps=total, epochs=self._settings.epochs))
        if self._progress.step == 0:
            self._evaluate()
        while self._progress.step < total and not self._run.stop_requested():
            batch = self.schedule.batch(self._progress.step)
            self._run.append(self.step_on(batch, self._settings.micro_batch_size))
            saving = _is_due(self._progress.step, self._settings.save_every)
            if self._evaluation_is_due(saving):
                self._evaluate()
            if saving:
                self._save()
            if self._low_enough():
                total = self._progress.step
        finished = self._progress.step >= total
        if finished and self._progress.evaluation_loss is None:
            self._evaluate()
        self._save()
        return finished

    @property
    def steps_done(self) -> int:
        """Optimizer steps behind the adapter as it is, those before a continuation included."""
        return self._progress.step

    def step_on(self, batch: Sequence[int], micro_batch_size: int) -> Step:
        """One optimizer step on the examples with these numbers; raises UserError when the loss is no number any more.

        It counts as a step of the training. Gradients that are there already are added to.
        """
        started = time.perf_counter()
        trained_tokens = sum(self._train.trained_tokens[i] for i in batch)
        self.model.train()
        total = 0.0
        for micro_batch in self._micro_batches(self._train, batch, micro_batch_size):
            loss = self._loss_sum(micro_batch) / trained_tokens
            self._accelerator.backward(loss)
            total += loss.item()
        if not math.isfinite(total):
            raise self._diverged(total, "loss")
        limit = self._settings.max_grad_norm or math.inf
        norm = float(self._accelerator.clip_grad_norm_(self.model.parameters(), limit))
        # Float16 now and then overflows on purpose: its scaler then leaves the step out by itself.
        if not math.isfinite(norm) and not self._resumable.scaler:
            raise self._diverged(norm, "gradient")
        rate = self._optimizer.param_groups[0]["lr"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._follow_schedule()
        self._progress.step += 1
        self._progress.loss = total
        self._progress.evaluation_loss = None  # that of an earlier step is not this one's
        return Step(
            step=self._progress.step,
            epoch=self._progress.step / self.schedule.steps_per_epoch,
            loss=total,
            learning_rate=rate,
            grad_norm=norm,
            tokens=sum(self._train.lengths[i] for i in batch),
            seconds=time.perf_counter() - started,
            memory=models.memory_in_use(),
        )

    def _follow_schedule(self) -> None:
        """The next step's learning rate. A step that float16's scaler left out moves the schedule no further."""
        skipped = self._optimizer.step_was_skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row == _MAX_SKIPPED_STEPS:
            raise self._diverged(math.inf, "gradient")
        if not skipped and self._settings.scheduler not in FOLLOW_EVALUATION:
            self._scheduler.step()

    def _diverged(self, value: float, what: str) -> UserError:
        return UserError(
            f"The {what} became {value} at step {self._progress.step + 1}, so the training was ended before it could "
            "spoil what was learnt. Copy this run's settings, lower the learning rate or lengthen the warm-up, and "
            "start anew."
        )

    def _evaluation_is_due(self, saving: bool) -> bool:
        """Every n steps, and with each checkpoint, so that checkpoints can be compared."""
        every = self._settings.evaluate_every
        return every > 0 and (saving or self._progress.step % every == 0)

    def _low_enough(self) -> bool:
        loss, limit = self._progress.loss, self._settings.stop_at_loss
        return limit > 0 and loss is not None and loss <= limit

    def _micro_batches(self, examples: Examples, numbers: Sequence[int], size: int) -> Iterator[list[Example]]:
        """Those examples a few at a time; of like length, so that little is padded: a sum does not mind the order."""
        ordered = sorted(numbers, key=examples.lengths.__getitem__)
        return ([examples[n] for n in ordered[i : i + size]] for i in range(0, len(ordered), size))

    def _loss_sum(self, examples: list[Example]) -> torch.Tensor:
        """Cross entropy summed over the trained tokens of the examples, in nats; a scalar."""
        batch = collate(examples, self._pad_token_id, self._accelerator.device)
        logits = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        targets = batch["labels"][:, 1:]
        logits = logits[:, -targets.shape[1] - 1 : -1]  # virtual tokens stand before the text
        trained = targets != IGNORED
        smoothing = self._settings.label_smoothing if self.model.training else 0.0  # evaluations stay comparable
        return F.cross_entropy(logits[trained].float(), targets[trained], reduction="sum", label_smoothing=smoothing)

    @torch.no_grad()
    def _evaluate(self) -> None:
        if not len(self._evaluation):
            return
        self.model.eval()
        total = 0.0
        size = self._settings.micro_batch_size
        for micro_batch in self._micro_batches(self._evaluation, range(len(self._evaluation)), size):
            if self._run.stop_requested():
                return  # the reader waits for the saving, not for a number
            total += self._loss_sum(micro_batch).item()
        loss = total / sum(self._evaluation.trained_tokens)
        self._progress.evaluation_loss = loss
        if self._settings.scheduler in FOLLOW_EVALUATION and self._progress.step:
            self._scheduler.step(loss)
        self._run.append(Evaluation(step=self._progress.step, loss=loss))

    def _save(self) -> None:
        """A checkpoint of this step, unless it is there already or nothing was learnt yet."""
        step = self._progress.step
        if step == 0 or any(c.step == step for c in self._run.checkpoints()):
            return
        save_checkpoint(self._run, self._accelerator.unwrap_model(self.model), self._resumable, self._progress)
        delete_old_checkpoints(self._run, self._settings.keep_last)
        self._run.append(
            CheckpointSaved(step=step, loss=self._progress.loss, evaluation_loss=self._progress.evaluation_loss)
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _add_noise(model: TrainableModel, alpha: float) -> None:
    """Uniform noise on the embeddings while training (NEFTune, Jain et al., 2023); nothing where alpha is 0."""
    if alpha > 0:
        embeddings = model.get_input_embeddings()
        embeddings.neftune_noise_alpha = alpha
        embeddings.register_forward_hook(neftune_post_forward_hook)
