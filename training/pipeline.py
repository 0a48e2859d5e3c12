"""One run from its settings to the saved adapter: tokenizer, data, model, trainer, receipt, result."""

from __future__ import annotations

import logging
import time

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from training import data, model
from training.base_models import cutoff_warning, locate_base_model
from training.checkpoints import save_result
from training.events import Note, Preparing
from training.paths import Folders, write_atomically
from training.receipt import data_has_changed, make_receipt
from training.runs import Checkpoint, Run, Status
from training.settings import Settings
from training.trainer import Trainer

_FEW_STEPS = 10  # with a warm-up among them, fewer leave no trace
_SECONDS_BETWEEN_COUNTS = 2.0
log = logging.getLogger(__name__)


def train_run(run: Run, folders: Folders) -> bool:
    """Train the run, or go on with it; returns whether it came to its end, raises UserError for what can be mended."""
    settings = run.settings()
    source = locate_base_model(folders, settings.base_model)
    if source == settings.base_model:
        run.append(Note(text=f"{source} is not in models/: it is downloaded first, unless that was done before."))
    set_seed(settings.seed)
    tokenizer = model.load_tokenizer(source)
    if warning := cutoff_warning(settings, source):
        run.append(Note(level="warning", text=warning))
    try:
        prepared = _prepare_data(run, settings, folders, tokenizer)
    except _StopAskedFor:
        return False
    log.info("%d examples to train on, %d held out", len(prepared.train), len(prepared.evaluation))

    checkpoint = run.checkpoints()[-1] if run.checkpoints() else None
    lora = _load_model(settings, source, checkpoint)
    trainer = Trainer(run, settings, lora, prepared, int(tokenizer.pad_token_id))
    if checkpoint and data_has_changed(run, prepared):
        run.append(
            Note(level="warning", text="The data has changed since this run began: it goes on with the new data.")
        )
    receipt = make_receipt(settings, lora, tokenizer, prepared, trainer.schedule)
    receipt.continued_from_step = checkpoint.step if checkpoint else None
    write_atomically(run.receipt_file, receipt.model_dump_json(indent=2))
    if trainer.schedule.total_steps < _FEW_STEPS:
        run.append(Note(level="warning", text=_few_steps(trainer.schedule.total_steps)))
    run.set_state(Status.TRAINING)
    log.info("training %d steps on %s", trainer.schedule.total_steps, model.device())
    finished = trainer.train(checkpoint)
    if trainer.steps_done:
        run.set_state(Status.SAVING)
        save_result(run, lora, tokenizer)
    return finished


def _few_steps(count: int) -> str:
    steps = "1 step" if count == 1 else f"{count} steps"
    return f"This training has only {steps}, so the LoRA will hardly change: lower the batch size or raise the epochs."


class _StopAskedFor(Exception):  # noqa: N818 - no error
    """Ends the preparation of data at the user's wish."""


def _prepare_data(
    run: Run, settings: Settings, folders: Folders, tokenizer: PreTrainedTokenizerBase
) -> data.PreparedData:
    """The examples; whatever the user should know about them becomes a note of the run."""
    if note := data.set_template(tokenizer, settings, folders):
        run.append(Note(text=note))
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


def _load_model(settings: Settings, source: str, checkpoint: Checkpoint | None) -> PeftModel:
    base = model.load_base(source, settings.precision)
    if settings.gradient_checkpointing:
        base.activation_checkpointing_enable()
    if checkpoint:
        return model.load_adapter(base, checkpoint.folder, trainable=True)
    return model.attach_lora(base, settings)
