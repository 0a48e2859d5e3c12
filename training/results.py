"""What a training leaves in its run folder: the trained weights of the last step, or those of a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from training.checkpoint_files import bytes_of, flush, why_damaged
from training.checkpoints import NOT_OF_THE_RESULT, best_checkpoint, save_model, set_aside, trained_bytes
from training.errors import Diverged
from training.events import Note
from training.methods import TrainableModel
from training.progress import Progress
from training.room import write_when_it_fits
from training.runs import ADAPTER_CONFIG, MODEL_CONFIG, Checkpoint, Run
from training.settings import FULL

_CLEARLY = 0.01  # lower by this share: below it, evaluations differ by chance


@dataclass(frozen=True)
class Kept:
    """Which step's weights are the result, and their evaluation loss where it is known."""

    step: int
    evaluation_loss: float | None


def keep_result(run: Run, model: TrainableModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Kept:
    """Make the last step's weights, or the best checkpoint's where the settings say so, the result of the run."""
    last = Kept(progress.step, progress.evaluation_loss)
    if run.settings().result == "best evaluation":
        while (best := best_checkpoint(run, progress)) and best.step != progress.step:
            if not (problem := why_damaged(best.folder)):
                save_tokenizer(run, tokenizer)
                return take_result(run, best, progress)
            set_aside(run, [best], "damaged")
            text = f"The checkpoint of step {best.step:,} is damaged ({problem}): the next best is taken."
            run.append(Note(level="warning", text=text))
    save_result(run, model, tokenizer)
    if run.settings().result == "last step":
        _tell_of_a_better_one(run, progress)
    return last


def _tell_of_a_better_one(run: Run, progress: Progress) -> None:
    best = best_checkpoint(run, progress)
    if best is None or best.step == progress.step:
        return
    lowest = progress.evaluations[best.step]
    at_end = progress.evaluations[max(progress.evaluations)]
    if lowest < (1 - _CLEARLY) * at_end:
        text = (
            f"The evaluation loss was lowest at step {best.step:,} ({lowest:.4f}; {at_end:.4f} at the end), so the "
            "steps after it made answers to new questions worse: choose that checkpoint in the chat to compare, and "
            "next time choose 'best evaluation' for Which one is kept, under Advanced."
        )
        run.append(Note(text=text))


def after_divergence(run: Run, progress: Progress, error: Diverged) -> tuple[Diverged, Kept | None]:
    """Set the checkpoints with the trouble in them aside and make the newest good one the result.

    Gives the error with what is left and what to do, and what the result is now; None where no checkpoint is good.
    """
    checkpoints = run.checkpoints()
    good = [c for c in checkpoints if c.step <= progress.last_good_step]
    if not good and progress.high_in_a_row == 0:
        good = checkpoints  # of finite numbers, and better than nothing
    set_aside(run, [c for c in checkpoints if c not in good], "diverged")
    while good and why_damaged(good[-1].folder):
        set_aside(run, [good.pop()], "damaged")
    if not good:
        advice = "lower the learning rate or lengthen the warm-up, and start it again"
        return Diverged(f"{error} Nothing that is worth keeping was saved before: {advice}."), None
    kept = take_result(run, good[-1], progress)
    what = "model" if run.settings().method == FULL else "LoRA"
    advice = "continue it with a lower learning rate, or start a new version with a longer warm-up"
    return Diverged(f"{error} The {what} is as it was at step {kept.step:,}: {advice}."), kept


def save_result(run: Run, model: TrainableModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what is trained and the tokenizer, with the template used in training, into the run folder.

    Each file is whole or as it was before; while the disk is full it waits for room.
    """

    def fill(folder: Path) -> None:
        save_model(run, model, folder)
        tokenizer.save_pretrained(str(folder))

    write_when_it_fits(run, trained_bytes(model), partial(_write, run, fill))


def take_result(run: Run, checkpoint: Checkpoint, progress: Progress) -> Kept:
    """Copy a checkpoint's weights into the run folder, as `save_result` would have written them at its step."""

    def fill(folder: Path) -> None:
        shutil.copytree(checkpoint.folder, folder, ignore=shutil.ignore_patterns(*NOT_OF_THE_RESULT))

    write_when_it_fits(run, bytes_of(checkpoint.folder), partial(_write, run, fill))
    return Kept(checkpoint.step, progress.evaluations.get(checkpoint.step))


def save_tokenizer(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer with its template into the run folder, for a chat with a checkpoint while the run goes on."""
    fill: Callable[[Path], object] = lambda folder: tokenizer.save_pretrained(str(folder))  # noqa: E731
    write_when_it_fits(run, 0, partial(_write, run, fill))


def _write(run: Run, fill: Callable[[Path], object]) -> None:
    """Have `fill` make a folder, and move what is in it into the run's, each file in one go."""
    made = run.folder / ".result.partial"
    shutil.rmtree(made, ignore_errors=True)
    try:
        fill(made)
        flush(made)
        # The config goes last: readers take a folder without it for one without an adapter.
        for file in sorted(made.iterdir(), key=lambda p: p.name in (ADAPTER_CONFIG, MODEL_CONFIG)):
            if file.is_dir():  # a folder, such as that of a tokenizer's further templates, replaces no full one
                shutil.rmtree(run.folder / file.name, ignore_errors=True)
            file.replace(run.folder / file.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
