"""One run from its settings to the saved adapter: tokenizer, data, model, trainer, receipt, result."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from training import data, model, processes
from training.adapters import earlier_adapter
from training.base_models import cutoff_warning, is_hub_name, locate_base_model
from training.batches import pad
from training.checkpoints import newest_whole_checkpoint, save_initial_adapter
from training.earlier import training_tokenizer
from training.errors import Diverged
from training.events import Downloading, Note, Preparing
from training.gradient_checkpointing import Decision, decide
from training.hub import DownloadStopped, Wanted, download
from training.loading import add_method, prepare_base
from training.merging import merge
from training.methods import CHANGES_BASE, TrainableModel, initialize, is_saved_otherwise
from training.modules import has_fused_experts
from training.paths import Folders
from training.receipt import Receipt, last_receipt, make_receipt, write_receipt
from training.results import Kept, after_divergence, keep_result, save_tokenizer
from training.run_state import Status
from training.runs import Checkpoint, Run
from training.settings import FULL, WHEN_NEEDED, Settings
from training.trainer import Trainer

_FEW_STEPS = 10  # with a warm-up among them, fewer leave no trace
_SECONDS_BETWEEN_COUNTS = 2.0
_EXPERTS = (
    "The experts of this model are neither trained nor loaded in fewer bits: the adapter is on its other layers only."
)
_EXAMPLES_FOR_EVA = 64  # what they span changes little after
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ready:
    """What a training needs before its model is loaded."""

    settings: Settings
    source: str  # the base model's folder
    tokenizer: PreTrainedTokenizerBase
    prepared: data.PreparedData
    checkpoint: Checkpoint | None  # that it goes on from
    earlier: Path | None  # the adapter of another run that it starts from

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


def train_run(run: Run, folders: Folders) -> bool:
    """Train the run, or go on with it; returns whether it came to its end, raises UserError for what can be mended.

    Started several times by torchrun, all of them train this one run together; each has to call this with the run of
    its own `run_here`.
    """
    with processes.joined():
        ready = processes.first_then_others(lambda: _make_ready(run, folders))
        if ready is None or not all(processes.gathered(ready is not None)):
            return False
        decision = processes.together(lambda: _checkpointing(run, ready))
        trainable = processes.together(lambda: _model_to_train(run, ready, decision))
        return _train(run, ready, trainable, decision)


def _make_ready(run: Run, folders: Folders) -> _Ready | None:
    """Base model, tokenizer, data and the place to go on from; None where a stop was asked for."""
    settings = run.settings()
    try:
        source = _base_model(run, folders)
    except DownloadStopped:
        return None
    if settings.start_from and settings.start_as == "merge it into the base":
        settings, source = _merged_base(run, folders, source)
    set_seed(settings.seed)
    checkpoint = _place_to_go_on_from(run)
    if checkpoint and run.has_tokenizer():  # what the run began from may be gone by now
        tokenizer, earlier = model.load_tokenizer(str(run.folder), trust_remote_code=settings.trust_remote_code), None
    else:
        tokenizer = training_tokenizer(source, settings, folders)
        earlier = earlier_adapter(folders, settings) if settings.start_from else None
    if warning := cutoff_warning(settings, source):
        run.append(Note(level="warning", text=warning))
    try:
        prepared = _prepare_data(run, settings, folders, tokenizer)
    except _StopAskedFor:
        return None
    log.info("%d examples to train on, %d held out", len(prepared.train), len(prepared.evaluation))
    return _Ready(settings, source, tokenizer, prepared, checkpoint, earlier)


def _place_to_go_on_from(run: Run) -> Checkpoint | None:
    if processes.is_first():
        return newest_whole_checkpoint(run)
    left = run.checkpoints()  # the first process has set the damaged ones aside
    return left[-1] if left else None


def _checkpointing(run: Run, ready: _Ready) -> Decision:
    """Whether gradient checkpointing is on, which the user is told where memory asks for it."""
    decision = decide(ready.settings, ready.source, ready.prepared.train, ready.earlier)
    if decision.on and ready.settings.gradient_checkpointing == WHEN_NEEDED:
        run.append(Note(text=f"Gradient checkpointing is on: {decision.because}."))
    return decision


def _model_to_train(run: Run, ready: _Ready, decision: Decision) -> TrainableModel:
    trainable = _load_model(run, ready, decision)
    if not ready.checkpoint and not ready.earlier:
        _initialize(run, trainable, ready)
    return trainable


def _train(run: Run, ready: _Ready, trainable: TrainableModel, decision: Decision) -> bool:
    """Train what is loaded, and leave the result and the receipt behind."""
    settings, prepared, checkpoint = ready.settings, ready.prepared, ready.checkpoint
    trainer = Trainer(run, settings, trainable, prepared, ready.pad_token_id)
    before = processes.from_first(last_receipt(run) if checkpoint else None)
    if before and before.is_of_other_data(prepared):
        run.append(
            Note(level="warning", text="The data has changed since this run began: it goes on with the new data.")
        )
    receipt = make_receipt(settings, trainer, ready.tokenizer, prepared)
    receipt.gradient_checkpointing, receipt.gradient_checkpointing_because = decision.on, decision.because
    receipt.continued_from_step = checkpoint.step if checkpoint else None
    # Also where that part was killed before its first checkpoint.
    again = before is not None and before.further and before.continued_from_step == receipt.continued_from_step
    receipt.further = again or (before is not None and before.had_ended_early(settings))
    _write_receipt(run, receipt)
    if trainer.why_padded:
        run.append(Note(text=f"Micro-batches are padded, which takes longer, because {trainer.why_padded}."))
    if trainer.schedule.total_steps < _FEW_STEPS:
        run.append(Note(level="warning", text=_few_steps(trainer.schedule.total_steps)))
    run.set_state(Status.TRAINING)
    log.info("training %d steps on %s", trainer.schedule.total_steps, model.device())
    try:
        finished = trainer.train(checkpoint, further=receipt.further)
    except Diverged as error:
        raise _diverged(run, receipt, trainer, error) from error
    receipt.ended_by = trainer.ended_by
    if trainer.progress.step and processes.is_first():
        run.set_state(Status.SAVING)
        _note(receipt, keep_result(run, trainable, ready.tokenizer, trainer.progress))
    _write_receipt(run, receipt)
    return finished


def _diverged(run: Run, receipt: Receipt, trainer: Trainer, error: Diverged) -> Diverged:
    """Bring the result back to where all was well; the error then says so too."""
    if not processes.is_first():
        return error
    run.set_state(Status.SAVING)
    told, kept = after_divergence(run, trainer.progress, error)
    receipt.ended_by = f"diverged after step {trainer.progress.step}"
    if kept:
        _note(receipt, kept)
    _write_receipt(run, receipt)
    return told


def _note(receipt: Receipt, kept: Kept) -> None:
    receipt.result_step, receipt.result_evaluation_loss = kept.step, kept.evaluation_loss


def _write_receipt(run: Run, receipt: Receipt) -> None:
    if processes.is_first():
        write_receipt(run, receipt)


def _base_model(run: Run, folders: Folders) -> str:
    """The folder of the base model, which is downloaded where it is not on this computer yet."""
    settings = run.settings()
    source = locate_base_model(folders, settings.base_model, run_code=settings.trust_remote_code)
    if source != settings.base_model:
        return source
    run.append(Note(text=f"{source} is not on this computer: it is downloaded first."))
    said_at = -math.inf

    def report(done: int, total: int, file: str) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SECONDS_BETWEEN_COUNTS:
            run.append(Downloading(done=done, total=total))
            said_at = time.monotonic()

    wanted = Wanted(source, with_code=settings.trust_remote_code, cache_dir=folders.hub_cache)
    return download(wanted, report, run.stop_requested)


def _merged_base(run: Run, folders: Folders, source: str) -> tuple[Settings, str]:
    """The settings with the merged model as their base, which are the run's from now on; and where that model is."""
    settings = run.settings()
    run.append(Note(text=f"'{settings.start_from}' is merged into {settings.base_model} first."))
    folder = merge(folders, source, settings)
    settings = settings.model_copy(update={"base_model": folder.name, "start_from": ""})
    run.write_settings(settings)
    run.append(Note(text=f"The sum is the base model {folder.name} in models/; the new LoRA belongs to that."))
    return settings, str(folder)


def _few_steps(count: int) -> str:
    steps = "1 step" if count == 1 else f"{count} steps"
    return f"This training has only {steps}, so the model will hardly change: lower the batch size or raise the epochs."


class _StopAskedFor(Exception):  # noqa: N818 - no error
    """Ends the preparation of data at the user's wish."""


def _prepare_data(
    run: Run, settings: Settings, folders: Folders, tokenizer: PreTrainedTokenizerBase
) -> data.PreparedData:
    """The examples; whatever the user should know about them becomes a note of the run."""
    if note := data.set_template(tokenizer, settings, folders):
        run.append(Note(text=note))
    if processes.is_first():
        save_tokenizer(run, tokenizer)
    done, said_at = 0, time.monotonic()

    def count(records: int) -> None:
        nonlocal done, said_at
        done += records
        if run.stop_requested():
            raise _StopAskedFor
        if time.monotonic() - said_at >= _SECONDS_BETWEEN_COUNTS:
            run.append(Preparing(records=done))
            said_at = time.monotonic()

    prepared = data.prepare(settings, folders, tokenizer, count)
    for warning in prepared.warnings():
        run.append(Note(level="warning", text=warning))
    return prepared


def _load_model(run: Run, ready: _Ready, decision: Decision) -> TrainableModel:
    """What is trained: new, as an earlier adapter left it, or as the run's own checkpoint did."""
    settings, checkpoint = ready.settings, ready.checkpoint
    is_whole = settings.method == FULL
    source = str(checkpoint.folder) if checkpoint and is_whole else ready.source
    base = prepare_base(source, ready.tokenizer, decision.applied_to(settings))
    if not is_whole and has_fused_experts(base):
        run.append(Note(text=_EXPERTS))
    if checkpoint and not is_whole and not is_saved_otherwise(settings):
        return model.load_adapter(base, checkpoint.folder, trainable=True)
    trainable, notes = add_method(base, settings, ready.earlier)
    if isinstance(trainable, PeftModel) and is_hub_name(settings.base_model):  # not the path of this computer's cache
        trainable.peft_config["default"].base_model_name_or_path = settings.base_model
    for note in notes:
        run.append(Note(text=note))
    return trainable


def _initialize(run: Run, trainable: TrainableModel, ready: _Ready) -> None:
    """What a new adapter begins with, where that is more than random numbers."""
    settings, train = ready.settings, ready.prepared.train
    if not isinstance(trainable, PeftModel) or settings.method != "LoRA":
        return
    if settings.initialization in ("EVA", "LoftQ"):
        run.append(Note(text=f"The LoRA is initialized with {settings.initialization} first."))
        examples = [train[n] for n in range(min(len(train), _EXAMPLES_FOR_EVA))]
        parts = (
            examples[n : n + settings.micro_batch_size] for n in range(0, len(examples), settings.micro_batch_size)
        )
        batches = (pad(part, ready.pad_token_id, model.device()) for part in parts)
        inputs = ({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask} for batch in batches)
        initialize(trainable, settings, ready.source, inputs)
    if settings.initialization in CHANGES_BASE and processes.is_first():
        save_initial_adapter(run, trainable)
