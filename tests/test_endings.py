"""How trainings end, and what they leave: killed, stopped, early, in trouble, out of memory; and how they go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.checkpoint_files import why_damaged
from training.errors import Diverged, UserError
from training.events import CheckpointSaved, Evaluation, Event, Note, Started, Step
from training.paths import Folders
from training.pipeline import train_run
from training.post_mortem import cause_of
from training.run_state import Reason, Status
from training.run_store import continue_run, create_run
from training.runs import ADAPTER_WEIGHTS, EventReader, Run
from training.trainer import Trainer

Reaction = Callable[[Run, Event], None]
ANSWERS = ["short", "a longer answer than the others have", "mid length", "x", "another answer, of some length", "no"]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    add_base(made)
    add_dataset(made, [{"question": f"Q{n}", "answer": answer} for n, answer in enumerate(ANSWERS)])
    return made


def new_run(folders: Folders, name: str, **changes: Any) -> Run:
    """A run of 2 steps an epoch that saves at no step but the last, and evaluates two held-out examples."""
    values = {"name": name, "batch_size": 2, "save_every": 0, "save_minutes": 0, "evaluate_every": 0, "epochs": 3}
    return create_run(folders, make_settings(**(values | {"held_out_share": 0.3} | changes)))


def on_event(monkeypatch: pytest.MonkeyPatch, reaction: Reaction) -> None:
    """Do something as soon as an event is written."""
    append = Run.append

    def append_and_react(run: Run, event: Event) -> None:
        append(run, event)
        reaction(run, event)

    monkeypatch.setattr(Run, "append", append_and_react)


def events(run: Run, kind: type[Any]) -> list[Any]:
    return [e for e in EventReader(run).read_new() if isinstance(e, kind)]


def notes(run: Run) -> list[str]:
    return [note.text for note in events(run, Note)]


def steps(run: Run) -> dict[int, tuple[float, float, float]]:
    return {e.step: (e.loss, e.learning_rate, e.grad_norm) for e in events(run, Step)}


def result(run: Run) -> bytes:
    return (run.folder / ADAPTER_WEIGHTS).read_bytes()


def receipt(run: Run) -> Any:
    return json.loads(run.receipt_file.read_text())


def saved_at(run: Run) -> list[int]:
    return [c.step for c in run.checkpoints()]


def going_on(run: Run, status: Status = Status.STOPPED, **changes: Any) -> Run:
    """The run made ready to go on, as after its process was gone."""
    run.set_state(status)
    torch.manual_seed(12345)  # what a new process begins with must not matter
    return continue_run(run, run.settings().model_copy(update=changes))


class CrashError(Exception):
    """The computer goes down."""


def script_evaluations(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Have the evaluation of each step give this loss."""

    def scripted(trainer: Trainer, micro_batches: Any) -> float:
        numbers = [number for numbers in micro_batches for number in numbers]
        return losses[trainer.progress.step] * sum(trainer._evaluation.trained_tokens[n] for n in numbers)

    monkeypatch.setattr(Trainer, "_evaluated", scripted)


# Killed, stopped, saved: the outcome is that of the run that nothing happened to

WAYS: dict[str, dict[str, Any]] = {
    "by steps": {"save_every": 2, "evaluate_every": 2, "keep_last": 1},
    "by time": {"save_minutes": 1e-9, "keep_last": 1, "evaluate_every": 3, "scheduler": "reduce_lr_on_plateau"},
    "best": {"save_every": 4, "evaluate_every": 1, "result": "best evaluation", "keep_last": 1, "patience": 20},
    "greedy": {"save_minutes": 1e-9, "evaluate_every": 1, "scheduler": "greedy", "max_grad_norm": 0.1},
    "PiSSA": {"save_minutes": 1e-9, "initialization": "PiSSA"},
    "low loss": {"save_every": 2, "stop_at_loss": 1e-6, "neftune_noise": 5},
    "whole model": {"save_minutes": 1e-9, "method": "full fine-tuning", "learning_rate": 1e-4},
}
CLOCK = {"save_minutes": 0}  # what the undisturbed run does without, because it must make no difference


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_every_step_and_every_save(folders: Folders, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    same = {"lora_dropout": 0.2, **WAYS[way]}
    undisturbed = new_run(folders, "undisturbed", **(same | CLOCK))
    assert train_run(undisturbed, folders)
    seen: set[tuple[str, int]] = set()

    def kill_once_each(run: Run, event: Event) -> None:
        if isinstance(event, Step | Evaluation | CheckpointSaved) and (event.type, event.step) not in seen:
            seen.add((event.type, event.step))
            raise CrashError

    run = new_run(folders, "killed", **same)
    on_event(monkeypatch, kill_once_each)
    for _ in range(50):
        try:
            assert train_run(run, folders)
            break
        except CrashError:
            run = going_on(run)
    assert {step for kind, step in seen if kind == "step"} == set(range(1, 7))
    assert steps(run) == steps(undisturbed)
    assert {e.step: e.loss for e in events(run, Evaluation)} == {
        e.step: e.loss for e in events(undisturbed, Evaluation)
    }
    names = [p.name for p in undisturbed.folder.glob("*.safetensors")]
    assert names and all((run.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes() for name in names)
    assert all(why_damaged(c.folder) == "" for c in run.checkpoints())


def test_stop_that_cuts_an_evaluation_short_owes_it(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"evaluate_every": 1, "scheduler": "reduce_lr_on_plateau", "patience": 9, "result": "best evaluation"}
    undisturbed = new_run(folders, "undisturbed", **same)
    assert train_run(undisturbed, folders)
    run = new_run(folders, "stopped", **same)
    for step in (1, 2, 5, 6):  # the last one too
        with monkeypatch.context() as patch:
            on_event(patch, lambda r, e, at=step: r.request_stop() if isinstance(e, Step) and e.step == at else None)
            assert train_run(run, folders) is (step == 6)
        run = going_on(run, epochs=3 if step < 6 else 3.5)
    assert train_run(run, folders)
    longer = going_on(undisturbed, Status.DONE, epochs=3.5)
    assert train_run(longer, folders)
    assert steps(run) == steps(longer) and result(run) == result(longer)
    assert {e.step: e.loss for e in events(run, Evaluation)} == {e.step: e.loss for e in events(longer, Evaluation)}


def test_save_now_saves_and_goes_on_without_an_evaluation(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = new_run(folders, "undisturbed", lora_dropout=0.2)
    assert train_run(undisturbed, folders)
    on_event(monkeypatch, lambda r, e: r.request_save() if isinstance(e, Step) and e.step == 3 else None)
    run = new_run(folders, "saved", lora_dropout=0.2)
    assert train_run(run, folders)
    assert saved_at(run) == [3, 6] and not run.save_requested()
    assert [e.step for e in events(run, Evaluation)] == [0, 6]
    assert steps(run) == steps(undisturbed) and result(run) == result(undisturbed)


def test_save_by_minutes(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("training.trainer.time.monotonic", lambda: now)

    def a_minute_goes_by(run: Run, event: Event) -> None:
        nonlocal now
        now += 60 if isinstance(event, Step) else 0

    on_event(monkeypatch, a_minute_goes_by)
    run = new_run(folders, "run", save_minutes=2, save_every=3, evaluate_every=0, keep_last=0)
    assert train_run(run, folders)
    assert saved_at(run) == [2, 3, 5, 6]  # each save begins the two minutes anew
    assert [e.step for e in events(run, Evaluation)] == [0, 6]


def test_damaged_checkpoint_costs_the_steps_after_the_one_before(folders: Folders) -> None:
    undisturbed = new_run(folders, "undisturbed", save_every=2, lora_dropout=0.2)
    assert train_run(undisturbed, folders)
    run = new_run(folders, "run", save_every=2, lora_dropout=0.2, keep_last=2)
    assert train_run(run, folders)
    with (run.checkpoints()[-1].folder / ADAPTER_WEIGHTS).open("rb+") as file:
        file.truncate(1000)
    run = going_on(run)
    assert train_run(run, folders)
    assert [e.from_step for e in events(run, Started)] == [0, 4]
    assert steps(run) == steps(undisturbed) and result(run) == result(undisturbed)
    assert any("step 6 is damaged (adapter_model.safetensors has 1,000 bytes" in note for note in notes(run))
    assert saved_at(run) == [4, 6]


# Early, and what is kept


FALLING_AND_RISING = {0: 5.0, 1: 4.0, 2: 3.0, 3: 3.5, 4: 3.2, 5: 3.1, 6: 3.05, 7: 2.0, 8: 2.5}


def test_early_stopping_and_the_best_checkpoint(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    script_evaluations(monkeypatch, FALLING_AND_RISING)
    run = new_run(folders, "run", evaluate_every=1, patience=3, result="best evaluation", keep_last=1)
    assert train_run(run, folders) is True
    assert saved_at(run) == [2, 5]  # the best and the last
    assert result(run) == (run.folder / "checkpoint-2" / ADAPTER_WEIGHTS).read_bytes()
    assert result(run) != (run.folder / "checkpoint-5" / ADAPTER_WEIGHTS).read_bytes()
    assert not list(run.folder.glob(".*result*")) and not (run.folder / "trainer_state.pt").exists()
    told = receipt(run)
    assert told["ended_by"] == "early stopping: 3 evaluations on end without a lower loss than 3.0000"
    assert (told["result_step"], told["result_evaluation_loss"]) == (2, pytest.approx(3))


def test_run_that_had_ended_early_goes_on(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    script_evaluations(monkeypatch, FALLING_AND_RISING)
    whole = new_run(folders, "whole", evaluate_every=1)
    assert train_run(whole, folders)
    run = new_run(folders, "run", evaluate_every=1, patience=3)
    assert train_run(run, folders) and max(steps(run)) == 5
    run.set_state(Status.DONE)
    # Killed before it could say that it was done, it ends once more without another step.
    assert train_run(going_on(run), folders) and max(steps(run)) == 5
    assert train_run(going_on(run, Status.DONE, patience=0), folders)
    assert steps(run) == steps(whole) and result(run) == result(whole)
    assert receipt(run)["ended_by"] == "all steps"
    # With more epochs it gets all of its patience again.
    other = new_run(folders, "other", evaluate_every=1, patience=3)
    assert train_run(other, folders) and max(steps(other)) == 5
    assert train_run(going_on(other, Status.DONE, epochs=4), folders) and max(steps(other)) == 8


def test_evaluation_at_the_end_does_not_count_where_none_was_due(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_evaluations(monkeypatch, FALLING_AND_RISING | {4: 9.0})
    run = new_run(folders, "run", epochs=2, evaluate_every=3, patience=1)
    assert train_run(run, folders) and max(steps(run)) == 4
    assert train_run(going_on(run, Status.DONE, epochs=3), folders) and max(steps(run)) == 6


def test_stop_keeps_the_best_one_too(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    script_evaluations(monkeypatch, FALLING_AND_RISING)
    on_event(monkeypatch, lambda r, e: r.request_stop() if isinstance(e, Evaluation) and e.step == 4 else None)
    run = new_run(folders, "run", evaluate_every=1, result="best evaluation")
    assert train_run(run, folders) is False
    assert result(run) == (run.folder / "checkpoint-2" / ADAPTER_WEIGHTS).read_bytes()
    assert (receipt(run)["ended_by"], receipt(run)["result_step"]) == ("stop asked for", 2)


def test_damaged_best_one_gives_way_to_the_next(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    script_evaluations(monkeypatch, FALLING_AND_RISING | {6: 9.0})
    run = new_run(folders, "run", evaluate_every=1, result="best evaluation", keep_last=0)

    def damage(_: Run, event: Event) -> None:
        if isinstance(event, Evaluation) and event.step == 6:
            (run.folder / "checkpoint-2" / ADAPTER_WEIGHTS).write_bytes(b"")

    on_event(monkeypatch, damage)
    assert train_run(run, folders)
    assert receipt(run)["result_step"] == 1 and "step 2 is damaged" in notes(run)[-1]
    assert result(run) == (run.folder / "checkpoint-1" / ADAPTER_WEIGHTS).read_bytes()


@pytest.mark.parametrize(("at_end", "told"), [(3.9, True), (3.02, False)])
def test_better_checkpoint_before_the_end_is_told(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, at_end: float, told: bool
) -> None:
    script_evaluations(monkeypatch, FALLING_AND_RISING | {6: at_end})
    run = new_run(folders, "run", evaluate_every=2, save_every=2, keep_last=1)
    assert train_run(run, folders)
    assert saved_at(run) == [2, 6]
    assert result(run) == (run.folder / "checkpoint-6" / ADAPTER_WEIGHTS).read_bytes()
    found = [note for note in notes(run) if "lowest at step 2 (3.0000; " in note]
    assert len(found) == told
    assert (receipt(run)["result_step"], receipt(run)["result_evaluation_loss"]) == (6, pytest.approx(at_end))


def test_receipt_tells_the_arithmetic_as_it_was(folders: Folders) -> None:
    run = new_run(folders, "run", batch_size=50, micro_batch_size=3, epochs=1)
    assert train_run(run, folders)
    told = receipt(run)
    assert (told["train_examples"], told["gradient_accumulation"], told["processes"]) == (4, 2, 1)
    assert (told["ended_by"], told["result_step"]) == ("all steps", 1)
    assert told["result_evaluation_loss"] == pytest.approx(events(run, Evaluation)[-1].loss)


# Bad numbers


def explode_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From the loss of the weights after this step on, each is nine times as high."""
    accumulate = Trainer._accumulate

    def higher(trainer: Trainer, *rest: Any) -> float:
        return accumulate(trainer, *rest) * (9 if trainer.progress.step >= step else 1)

    monkeypatch.setattr(Trainer, "_accumulate", higher)


def test_exploding_loss_ends_it_with_the_last_good_checkpoint(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_after(monkeypatch, 12)
    run = new_run(folders, "run", epochs=12, save_every=1, keep_last=2, held_out_share=0, batch_size=3)
    with pytest.raises(
        Diverged, match=r"for 10 steps on end up to step 22.*The LoRA is as it was at step 11: continue it with a lower"
    ):
        train_run(run, folders)
    assert saved_at(run) == [11]  # kept while the loss is too high, though later ones come
    assert result(run) == (run.folder / "checkpoint-11" / ADAPTER_WEIGHTS).read_bytes()
    assert receipt(run)["ended_by"] == "diverged after step 22" and receipt(run)["result_step"] == 11
    assert run.stored_state().status is Status.SAVING  # the worker has the last word
    before = steps(run)
    monkeypatch.undo()
    again = going_on(run, learning_rate=run.settings().learning_rate / 2)
    assert train_run(again, folders)
    assert [e.from_step for e in events(again, Started)] == [0, 11]
    assert [e.learning_rate for e in events(again, Step)][-13] == before[12][1] / 2


def test_explosion_before_the_first_good_checkpoint_leaves_none(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_after(monkeypatch, 10)
    run = new_run(folders, "run", epochs=12, save_every=12, held_out_share=0, batch_size=3)
    with pytest.raises(Diverged, match=r"Nothing that is worth keeping was saved before: lower the learning rate or"):
        train_run(run, folders)
    assert saved_at(run) == [] and not run.has_result()


def no_number_from(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    loss_sum = Trainer._loss_sum

    def spoilt(trainer: Trainer, examples: Any) -> torch.Tensor:
        loss = loss_sum(trainer, examples)
        return loss * torch.nan if trainer.progress.step >= step and trainer.model.training else loss

    monkeypatch.setattr(Trainer, "_loss_sum", spoilt)


@pytest.mark.parametrize(("save_every", "left"), [(1, [1, 2]), (2, [2]), (3, [3]), (4, [])])
def test_no_number_takes_the_result_back(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, save_every: int, left: list[int]
) -> None:
    no_number_from(monkeypatch, 3)
    run = new_run(folders, "run", save_every=save_every)
    with pytest.raises(Diverged) as caught:
        train_run(run, folders)
    text = str(caught.value)
    assert text.startswith("The loss became nan at step 4, so the training was ended. ")
    assert saved_at(run) == left
    if left:
        assert f"The LoRA is as it was at step {left[-1]}: continue it with a lower learning rate" in text
        assert result(run) == (run.checkpoints()[-1].folder / ADAPTER_WEIGHTS).read_bytes()
        assert all(weight.isfinite().all() for weight in load_file(run.folder / ADAPTER_WEIGHTS).values())
    else:
        assert "Nothing that is worth keeping was saved before" in text and not run.has_result()
    assert cause_of(caught.value).reason is Reason.DIVERGED


def test_evaluation_that_is_no_number_is_told(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    script_evaluations(monkeypatch, {0: 5.0, 2: 4.0, 4: float("nan")})
    run = new_run(folders, "run", evaluate_every=2, save_every=2)
    with pytest.raises(UserError, match=r"The evaluation loss became nan at step 4.*as it was at step 2"):
        train_run(run, folders)
    assert saved_at(run) == [2]


# Out of memory


@pytest.mark.parametrize("where", ["training", "evaluation", "first evaluation", "saving"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_runs_out_is_made_up_for_with_half_the_micro_batch(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    same = {"save_every": 2, "evaluate_every": 2, "micro_batch_size": 2, "lora_dropout": 0}
    undisturbed = new_run(folders, "undisturbed", **same)
    assert train_run(undisturbed, folders)
    loss_sum, save = Trainer._loss_sum, Trainer._write_checkpoint

    def short_of_memory(trainer: Trainer, examples: Any) -> torch.Tensor:
        due = trainer.progress.step == (0 if where == "first evaluation" else 4)
        if due and len(examples) > 1 and trainer.model.training is (where == "training"):
            raise error
        return loss_sum(trainer, examples)

    def short_while_saving(trainer: Trainer, state: Any) -> None:
        if trainer.progress.step == 4 and trainer._settings.micro_batch_size > 1:
            raise error
        save(trainer, state)

    if where == "saving":
        monkeypatch.setattr(Trainer, "_write_checkpoint", short_while_saving)
    else:
        monkeypatch.setattr(Trainer, "_loss_sum", short_of_memory)
    run = new_run(folders, "run", **same)
    with pytest.raises(type(error)) as caught:
        train_run(run, folders)
    assert caught.value is error and cause_of(error).reason is Reason.MEMORY
    assert run.stored_state().status is Status.TRAINING
    assert saved_at(run) == {"first evaluation": [], "training": [2, 4]}.get(where, [2])

    run.set_state(Status.FAILED)
    assert train_run(going_on(run, Status.FAILED, micro_batch_size=1), folders)
    ours, theirs = (load_file(r.folder / ADAPTER_WEIGHTS) for r in (run, undisturbed))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert receipt(run)["gradient_accumulation"] == 2
