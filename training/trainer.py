"""The training loop: model and data in, events and checkpoints out. It knows nothing of what shows them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial

import torch
from accelerate import Accelerator

from training import model as models
from training import processes
from training.background import Background
from training.batches import parts_within
from training.checkpoints import (
    Resumable,
    best_checkpoint,
    delete_old_checkpoints,
    load_checkpoint,
    save_checkpoint,
    take_snapshot,
)
from training.data import PreparedData
from training.errors import Diverged
from training.events import CheckpointSaved, Evaluation, Started, Step
from training.loss import ExampleLoss
from training.methods import TrainableModel, is_saved_otherwise
from training.noise import add_noise
from training.offload import offload_activations
from training.optimization import make_optimizer, make_scheduler
from training.prepared import Example, Examples
from training.progress import STOPPED, Progress
from training.runs import Checkpoint, Run
from training.schedule import Schedule
from training.settings import FOLLOW_EVALUATION, Settings
from training.snapshots import Snapshot

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
        self.progress = Progress()
        self.ended_by = ""  # what ended the training, once it has ended
        self._saved_at = time.monotonic()
        self._background = Background()  # for what speaks with no other process and leaves model and optimizer alone
        self.schedule = Schedule(len(data.train), settings.batch_size, settings.epochs, settings.seed)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        processes.spread(self._parameters)
        # Before the accelerator: the TrainingArguments that name the optimizer's class reset accelerate's state.
        optimizer = make_optimizer(model, settings)
        if settings.offload_activations and models.device().type == "cuda":
            offload_activations(model)
        compute = models.compute_dtype(settings.precision)
        self._loss = ExampleLoss(model, pad_token_id, compute, settings.label_smoothing)
        self._accelerator = Accelerator(
            mixed_precision=_MIXED_PRECISION[compute],
            cpu=models.device().type == "cpu",
        )
        # As for evaluation only: with several processes it would else take the mean of their gradients, not the sum.
        self.model = self._accelerator.prepare_model(model, evaluation_mode=True)
        self._optimizer = self._accelerator.prepare_optimizer(optimizer)
        self._scheduler = make_scheduler(optimizer, settings, self.schedule.total_steps)
        # To go on, the trained weights themselves are needed.
        kept = is_saved_otherwise(settings)
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad} if kept else {}
        self._resumable = Resumable(
            optimizer, self._scheduler, self._accelerator.scaler, settings.learning_rate, weights
        )
        add_noise(model, settings.neftune_noise)

    @property
    def why_padded(self) -> str:
        """Why micro-batches are padded, in words that follow "because"; empty where they are not."""
        return self._loss.why_padded

    def train(self, resume_from: Checkpoint | None = None, *, further: bool = False) -> bool:
        """Train to the end, or until a stop is asked for, saving at either; returns whether the end was reached.

        `further` lets a run go on that had ended before its last step. Raises Diverged when it only gets worse.
        """
        if resume_from:
            self.progress = load_checkpoint(resume_from, self._resumable)
        else:
            processes.own_random_numbers(self._settings.seed)
        if further:
            self.progress.go_further()
        with self._run.in_batches(), self._background:
            return self._train_to_the_end()

    def _train_to_the_end(self) -> bool:
        total = self.schedule.total_steps
        self._run.append(Started(from_step=self.progress.step, total_steps=total, epochs=self._settings.epochs))
        self._saved_at = time.monotonic()
        if self.progress.step == 0:
            self._evaluate(counts=False)
        elif self.progress.evaluation_owed:
            self._evaluate()
        saving = False
        while not self._has_ended():
            if saving:
                self._save()
            self._background.keep_up()
            batch = self.schedule.batch(self.progress.step)
            self._run.append(self.step_on(batch, self._settings.micro_batch_size))
            self.progress.check_course()
            by_step = _is_due(self.progress.step, self._settings.save_every)
            if self._evaluation_is_due(by_step):
                self._run.append_waiting()  # it may take long, and the steps before it are to be seen
                self._evaluate()
            saving = self._save_is_due(by_step)
        finished = self.ended_by != STOPPED
        if finished and self.progress.evaluation_loss is None:
            self._evaluate(counts=self.progress.evaluation_owed)
        self._save()
        return finished

    def step_on(self, batch: Sequence[int], micro_batch_size: int) -> Step:
        """One optimizer step on the examples with these numbers; raises Diverged when the loss is no number any more.

        It counts as a step of the training. Gradients that are there already are added to.
        """
        started = time.perf_counter()
        self.model.train()
        micro_batches = processes.share(self._micro_batches(self._train, batch, micro_batch_size))
        trained_tokens = sum(self._train.trained_tokens[i] for i in batch)
        total = processes.total(processes.together(lambda: self._accumulate(micro_batches, trained_tokens)))
        processes.add_gradients(self._parameters)
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
        self.progress.took_step(total)
        return Step(
            step=self.progress.step,
            epoch=self.progress.step / self.schedule.steps_per_epoch,
            loss=total,
            learning_rate=rate,
            grad_norm=norm,
            tokens=sum(self._train.lengths[i] for i in batch),
            seconds=time.perf_counter() - started,
            memory=models.memory_in_use(),
        )

    def _accumulate(self, micro_batches: Sequence[Sequence[int]], trained_tokens: int) -> float:
        """Add to the gradients; returns these micro-batches' part of the step's mean loss."""
        total = torch.zeros((), device=self._accelerator.device)
        if self._accelerator.scaler:
            self._accelerator.scaler.scale(total)  # it has to have begun, also where there is nothing to do
        for numbers in micro_batches:
            loss = self._loss_sum([self._train[n] for n in numbers]) / trained_tokens
            self._accelerator.backward(loss)
            total += loss.detach()
        return float(total)  # asked for once, because a GPU has to be waited for

    def _follow_schedule(self) -> None:
        """The next step's learning rate. A step that float16's scaler left out moves the schedule no further."""
        skipped = self._optimizer.step_was_skipped
        self.progress.skipped_in_a_row = self.progress.skipped_in_a_row + 1 if skipped else 0
        if self.progress.skipped_in_a_row == _MAX_SKIPPED_STEPS:
            raise self._diverged(math.inf, "gradient")
        if not skipped and self._settings.scheduler not in FOLLOW_EVALUATION:
            self._scheduler.step()

    def _diverged(self, value: float, what: str) -> Diverged:
        return Diverged(f"The {what} became {value} at step {self.progress.step + 1}, so the training was ended.")

    def _evaluation_is_due(self, saving: bool) -> bool:
        """Every n steps, and with each checkpoint that is due by steps, so that checkpoints can be compared."""
        every = self._settings.evaluate_every
        return every > 0 and (saving or _is_due(self.progress.step, every))

    def _save_is_due(self, by_step: bool) -> bool:
        """By steps, by time, because it is asked for, or because it is the best so far and that one is wanted.

        Only the first brings an evaluation along: what is learnt must not hang on the clock or on the reader.
        """
        minutes = self._settings.save_minutes
        by_time = minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes
        best = self._settings.result == "best evaluation" and self.progress.is_new_best
        # What is being written may be what was asked for: then the request is gone when it is there.
        asked = self._run.save_requested() and not self._background.is_busy()
        return processes.from_first(by_step or best or by_time or asked)

    def _has_ended(self) -> bool:
        """Whether the training is at its end, early or not, or a stop is asked for."""
        self.ended_by = self.progress.ended_by(self._settings, self.schedule.total_steps)
        if not self.ended_by and processes.from_first(self._run.stop_requested()):
            self.ended_by = STOPPED
        return bool(self.ended_by)

    def _micro_batches(self, examples: Examples, numbers: Sequence[int], size: int) -> list[list[int]]:
        """Those numbers in parts, as a sum does not mind the order.

        In a row of their own examples of any length cost what they have in tokens: a part holds as many as take no
        more than the `size` longest of all, for which memory is checked. Padded ones are put to those of like length.
        """
        if not self._loss.why_padded:
            lengths = [examples.lengths[n] for n in numbers]
            parts = parts_within(lengths, examples.tokens_of_longest(size), processes.count())
            return [[numbers[n] for n in part] for part in parts]
        ordered = sorted(numbers, key=examples.lengths.__getitem__)
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    def _loss_sum(self, examples: list[Example]) -> torch.Tensor:
        """Cross entropy summed over the trained tokens of the examples, in nats; a scalar."""
        return self._loss.of(examples)

    @torch.no_grad()
    def _evaluate(self, *, counts: bool = True) -> None:
        """The loss on the evaluation examples. One that does not count changes nothing of how the training goes on."""
        if not len(self._evaluation):
            return
        self.progress.evaluation_owed = counts or self.progress.evaluation_owed
        self.model.eval()
        total = 0.0
        size = self._settings.micro_batch_size
        micro_batches = self._micro_batches(self._evaluation, range(len(self._evaluation)), size)
        for place in range(0, len(micro_batches), processes.count()):
            if processes.from_first(self._run.stop_requested()):
                return  # the reader waits for the saving, not for a number
            mine = processes.share(micro_batches[place : place + processes.count()])
            total += processes.together(partial(self._evaluated, mine))
        loss = processes.total(total) / sum(self._evaluation.trained_tokens)
        if not math.isfinite(loss):
            raise Diverged(
                f"The evaluation loss became {loss} at step {self.progress.step}, so the training was ended."
            )
        self.progress.evaluated(loss, counts=counts)
        if counts and self._settings.scheduler in FOLLOW_EVALUATION:
            self._scheduler.step(loss)
        self._run.append(Evaluation(step=self.progress.step, loss=loss))

    def _evaluated(self, micro_batches: Sequence[Sequence[int]]) -> float:
        """The loss summed over these."""
        return sum(self._loss_sum([self._evaluation[n] for n in numbers]).item() for numbers in micro_batches)

    def _save(self) -> None:
        """Begin a checkpoint of this step, unless it is there already or nothing was learnt yet."""
        self._background.wait()  # two at a time would take the memory twice
        step = self.progress.step
        there = step == 0 or any(c.step == step for c in self._run.checkpoints())
        if not processes.from_first(there):
            state = self._resumable.state()
            if processes.is_first():
                self._write_checkpoint(state)
        elif step and self._run.save_requested():
            self._run.save_answered()
        self._saved_at = time.monotonic()

    def _write_checkpoint(self, state: dict[str, object]) -> None:
        """Write it in the background, or at once where its parts cannot be copied."""
        self._run.append_waiting()  # a run that goes on from it does not do the steps before it again
        model = self._accelerator.unwrap_model(self.model)
        snapshot = take_snapshot(self._run, model, state, self.progress)
        write = partial(self._write_snapshot, model, snapshot, self._run.save_requested())
        if snapshot.is_copy:
            self._background.begin(write)
        else:
            write()

    def _write_snapshot(self, model: TrainableModel, snapshot: Snapshot, asked: bool) -> None:
        """Write it, delete those that it takes the place of, and only then say that it is there."""
        progress = snapshot.progress
        save_checkpoint(self._run, model, snapshot, self._background.hold_up)
        if not progress.in_trouble:  # else those from before the trouble may be needed
            best = best_checkpoint(self._run, progress)
            delete_old_checkpoints(self._run, self._settings.keep_last, best)
        self._run.append(
            CheckpointSaved(step=progress.step, loss=progress.loss, evaluation_loss=progress.evaluation_loss)
        )
        if asked:
            self._run.save_answered()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
