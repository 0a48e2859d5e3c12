"""The training loop on a tiny model: the right loss and gradient, and runs that can be stopped and gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from tests.tiny import CHATML, add_base, add_dataset, make_folders, make_settings, make_tokenizer
from training import model as models
from training.background import Background
from training.data import PreparedData, prepare
from training.errors import UserError
from training.events import CheckpointSaved, Evaluation, Event, Note, Started, Step
from training.loss import ExampleLoss
from training.methods import attach
from training.paths import Folders
from training.pipeline import train_run
from training.prepared import IGNORED, Example
from training.run_state import Status
from training.run_store import create_run
from training.runs import EventReader, Run
from training.trainer import Trainer

ANSWERS = ["short", "a longer answer than the others have", "mid length", "x", "another answer, of some length", "no"]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    add_base(made)
    add_dataset(made, [{"question": f"Q{n}", "answer": answer} for n, answer in enumerate(ANSWERS)])
    return made


@dataclass
class Bench:
    """A trainer and what it works on."""

    run: Run
    trainer: Trainer
    lora: PeftModel
    data: PreparedData

    def events(self, kind: type[Any]) -> list[Any]:
        return [e for e in EventReader(self.run).read_new() if isinstance(e, kind)]


def bench(folders: Folders, **changes: Any) -> Bench:
    """A trainer whose adapter is random and not zero, so that every part of it has a gradient."""
    settings = make_settings(**({"held_out_share": 0, "lora_dropout": 0} | changes))
    run = create_run(folders, settings)
    set_seed(settings.seed)
    tokenizer = models.load_tokenizer(str(folders.models / "tiny"))
    data = prepare(settings, folders, tokenizer)
    lora = attach(models.load_base(str(folders.models / "tiny"), settings), settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.05, generator=generator)
    return Bench(run, Trainer(run, settings, lora, data, int(tokenizer.pad_token_id)), lora, data)


def adapter_of(lora: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lora.named_parameters() if p.requires_grad}


def plain_loss(lora: PeftModel, examples: Iterable[Example]) -> torch.Tensor:
    """The mean over all trained tokens, each example alone and unpadded."""
    total, count = torch.zeros(()), 0
    for example in examples:
        logits = lora(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        targets = torch.tensor(example.labels[1:])
        total = total + cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        count += int((targets != IGNORED).sum())
    return total / count


def react(monkeypatch: pytest.MonkeyPatch, reaction: Callable[[Run, Event], None]) -> None:
    """Do something as soon as an event is written."""
    append = Run.append

    def append_and_react(run: Run, event: Event) -> None:
        append(run, event)
        reaction(run, event)

    monkeypatch.setattr(Run, "append", append_and_react)


def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the training wait for each checkpoint, so that what follows is known."""
    monkeypatch.setattr(Background, "begin", lambda _, work: work())


# The loss and its gradient


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 32])
def test_loss_and_gradient_are_the_plain_mean_whatever_the_micro_batch(folders: Folders, micro_batch_size: int) -> None:
    # With plain gradient descent, a rate of 1 and no clipping, a step moves each weight by its gradient.
    b = bench(
        folders,
        optimizer="sgd",
        learning_rate=1,
        scheduler="constant",
        max_grad_norm=0,
        batch_size=32,
        micro_batch_size=micro_batch_size,
        epochs=1,
    )
    expected = plain_loss(b.lora, b.data.train)
    expected.backward()
    before = adapter_of(b.lora)
    gradients = {name: p.grad.clone() for name, p in b.lora.named_parameters() if p.grad is not None}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    b.lora.zero_grad()

    assert b.trainer.train() is True
    (step,) = b.events(Step)
    assert step.loss == pytest.approx(expected.item(), abs=1e-5)
    assert step.grad_norm == pytest.approx(norm, rel=1e-4)
    assert step.learning_rate == 1
    assert step.tokens == sum(len(e.input_ids) for e in b.data.train)
    assert gradients and gradients.keys() == before.keys()
    for name, after in adapter_of(b.lora).items():
        torch.testing.assert_close(before[name] - after, gradients[name], atol=1e-5, rtol=1e-4)


def test_a_micro_batch_takes_no_more_than_the_longest_examples_and_many_short_ones(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[list[int]] = []
    plain = ExampleLoss.of

    def noted(self: ExampleLoss, examples: Sequence[Example]) -> torch.Tensor:
        together.append([len(example.input_ids) for example in examples])
        return plain(self, examples)

    monkeypatch.setattr(ExampleLoss, "of", noted)
    b = bench(folders, batch_size=6, micro_batch_size=2, epochs=1)
    b.trainer.train()
    lengths = sorted(b.data.train.lengths)
    assert sorted(length for examples in together for length in examples) == lengths
    assert all(sum(examples) <= sum(lengths[-2:]) for examples in together)
    assert len(together) > 1 and max(map(len, together)) > 2


def test_gradient_is_clipped(folders: Folders) -> None:
    b = bench(
        folders, optimizer="sgd", learning_rate=1, scheduler="constant", max_grad_norm=0.01, batch_size=32, epochs=1
    )
    before = adapter_of(b.lora)
    b.trainer.train()
    moved = torch.stack([(before[name] - after).norm() for name, after in adapter_of(b.lora).items()]).norm().item()
    assert b.events(Step)[0].grad_norm > 0.01
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_evaluation_is_the_plain_mean_too(folders: Folders) -> None:
    b = bench(folders, held_out_share=0.5, micro_batch_size=2, lora_dropout=0.5)  # which must not count here
    assert len(b.data.evaluation) == 3
    b.lora.eval()
    with torch.no_grad():
        expected = plain_loss(b.lora, b.data.evaluation).item()
    b.trainer.train()
    first = b.events(Evaluation)[0]
    assert first.step == 0 and first.loss == pytest.approx(expected, abs=1e-5)


def test_gradient_checkpointing_changes_nothing(folders: Folders) -> None:
    plain, spared = (create_run(folders, make_settings(name=n, gradient_checkpointing=n == "b")) for n in "ab")
    for run in (plain, spared):
        train_run(run, folders)
    assert [e.loss for e in steps_of(spared)] == pytest.approx([e.loss for e in steps_of(plain)], abs=1e-5)


def test_repeated_example_is_learnt_and_the_base_is_not_touched(folders: Folders) -> None:
    add_dataset(folders, [{"question": "Q", "answer": "the answer"}])
    b = bench(folders, batch_size=1, micro_batch_size=1, epochs=30, learning_rate=0.01, warmup=0)
    base = {n: p.detach().clone() for n, p in b.lora.named_parameters() if not p.requires_grad}
    adapter = adapter_of(b.lora)
    b.trainer.train()
    losses = [e.loss for e in b.events(Step)]
    assert len(losses) == 30 and losses[-1] < 0.6 * losses[0]
    for name, parameter in b.lora.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name
        else:
            assert not torch.equal(parameter, adapter[name]), name


def test_single_step_with_the_default_warm_up_learns(folders: Folders) -> None:
    b = bench(folders, batch_size=32, epochs=1)
    before = adapter_of(b.lora)
    b.trainer.train()
    assert len(b.events(Step)) == 1
    assert any(not torch.equal(before[name], after) for name, after in adapter_of(b.lora).items())


# Events, checkpoints, stopping


def test_events_checkpoints_and_evaluations_come_when_due(folders: Folders) -> None:
    b = bench(folders, held_out_share=0.3, batch_size=2, epochs=3, evaluate_every=4, save_every=4)
    assert b.trainer.train() is True
    (started,) = b.events(Started)
    assert (started.from_step, started.total_steps, started.epochs) == (0, 6, 3)
    assert [e.step for e in b.events(Step)] == [1, 2, 3, 4, 5, 6]
    assert [e.epoch for e in b.events(Step)] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert [e.step for e in b.events(Evaluation)] == [0, 4, 6]
    saved = b.events(CheckpointSaved)
    assert [e.step for e in saved] == [4, 6]
    assert saved[1].loss == b.events(Step)[-1].loss and saved[1].evaluation_loss == b.events(Evaluation)[-1].loss
    assert [c.step for c in b.run.checkpoints()] == [4, 6]


def test_zero_means_only_at_the_end(folders: Folders) -> None:
    b = bench(folders, held_out_share=0.3, batch_size=2, epochs=2, evaluate_every=0, save_every=0)
    b.trainer.train()
    assert [e.step for e in b.events(Evaluation)] == [0, 4]
    assert [e.step for e in b.events(CheckpointSaved)] == [4]


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [6]), (2, [4, 6]), (0, [2, 4, 6])])
def test_last_checkpoints_are_kept(folders: Folders, keep_last: int, kept: list[int]) -> None:
    b = bench(folders, batch_size=2, epochs=2, keep_last=keep_last)
    b.trainer.train()
    assert [c.step for c in b.run.checkpoints()] == kept
    assert not list(b.run.folder.glob(".checkpoint*"))


def test_stop_ends_after_the_step_with_a_checkpoint(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    react(monkeypatch, lambda run, event: run.request_stop() if isinstance(event, Step) and event.step == 3 else None)
    b = bench(folders, batch_size=2, epochs=10, save_every=0)
    assert b.trainer.train() is False
    assert [e.step for e in b.events(Step)] == [1, 2, 3]
    assert [c.step for c in b.run.checkpoints()] == [3]


def test_stop_before_the_first_step_saves_nothing(folders: Folders) -> None:
    b = bench(folders)
    b.run.request_stop()
    assert b.trainer.train() is False
    assert b.events(Step) == [] and b.run.checkpoints() == []


def test_low_loss_ends_the_training_as_done(folders: Folders) -> None:
    b = bench(folders, batch_size=2, epochs=10, save_every=0, stop_at_loss=100, held_out_share=0.3)
    assert b.trainer.train() is True
    assert [e.step for e in b.events(Step)] == [1]
    assert [c.step for c in b.run.checkpoints()] == [1]
    assert [e.step for e in b.events(Evaluation)] == [0, 1]


def test_plateau_lowers_the_rate_when_evaluation_stands_still(folders: Folders) -> None:
    b = bench(
        folders,
        held_out_share=0.3,
        batch_size=4,
        epochs=14,
        learning_rate=1e-7,
        evaluate_every=1,
        save_every=0,
        scheduler="reduce_lr_on_plateau",
    )
    b.trainer.train()
    found = [e.learning_rate for e in b.events(Step)]
    assert found[0] == 1e-7 and found[-1] <= 5e-8  # halved at least once


# What goes wrong


def poison(lora: PeftModel) -> None:
    lora.get_base_model().model.norm.weight.data[0] = torch.nan


def test_loss_that_is_no_number_ends_the_run_and_spares_the_checkpoint(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(folders, batch_size=2, epochs=10)
    write_at_once(monkeypatch)
    react(monkeypatch, lambda _, event: poison(b.lora) if isinstance(event, CheckpointSaved) else None)
    with pytest.raises(UserError, match="The loss became nan at step 3"):
        b.trainer.train()
    assert_whole(b, 2)


def test_gradient_that_is_no_number_ends_the_run_before_it_harms(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(folders, batch_size=2, epochs=10)

    def spoil(parameter: torch.Tensor) -> None:
        parameter.register_hook(lambda gradient: gradient * torch.inf)

    one = next(p for p in b.lora.parameters() if p.requires_grad)
    write_at_once(monkeypatch)
    react(monkeypatch, lambda _, event: spoil(one) if isinstance(event, CheckpointSaved) else None)
    with pytest.raises(UserError, match=r"The gradient became (nan|inf) at step 3"):
        b.trainer.train()
    assert_whole(b, 2)
    assert all(p.isfinite().all() for p in b.lora.parameters())


def assert_whole(b: Bench, step: int) -> None:
    """The run has just the checkpoint of `step`, with an adapter of numbers."""
    assert [c.step for c in b.run.checkpoints()] == [step]
    base = models.load_base(str(b.run.folder.parent.parent / "models" / "tiny"), make_settings())
    loaded = models.load_adapter(base, b.run.checkpoints()[0].folder)
    assert all(p.isfinite().all() for p in loaded.parameters())


# Going on


def steps_of(run: Run) -> list[Step]:
    return [e for e in EventReader(run).read_new() if isinstance(e, Step)]


class CrashError(Exception):
    """The computer goes down."""


def interrupt(run: Run, event: Event) -> None:
    """Stop the run called stopped, and crash the one called crashed, after the third step."""
    if isinstance(event, Step) and event.step == 3:
        if run.name == "stopped":
            run.request_stop()
        if run.name == "crashed":
            raise CrashError


@pytest.mark.parametrize("how", ["stopped", "crashed"])
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        ("adamw_torch", "cosine"),
        ("adamw_8bit", "linear"),
        ("adafactor", "warmup_stable_decay"),
        ("lion_32bit", "reduce_lr_on_plateau"),
    ],
)
def test_going_on_gives_what_an_undisturbed_run_gives(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, how: str, optimizer: str, scheduler: str
) -> None:
    same = {"optimizer": optimizer, "scheduler": scheduler, "lora_dropout": 0.2, "epochs": 3, "batch_size": 2}
    undisturbed = create_run(folders, make_settings(name="undisturbed", **same))
    assert train_run(undisturbed, folders)

    react(monkeypatch, interrupt)
    broken = create_run(folders, make_settings(name=how, **same))
    if how == "stopped":
        assert not train_run(broken, folders)
    else:
        with pytest.raises(CrashError):
            train_run(broken, folders)
    monkeypatch.undo()
    broken.set_state(broken.state().status.STOPPED)
    torch.manual_seed(12345)  # what a new process begins with must not matter
    again = create_run(folders, make_settings(name=how, if_exists="continue", **same))
    assert again.folder == broken.folder
    assert train_run(again, folders)

    started = [e for e in EventReader(again).read_new() if isinstance(e, Started)]
    assert [e.from_step for e in started] == [0, 3 if how == "stopped" else 2]
    losses = {e.step: (e.loss, e.learning_rate, e.grad_norm) for e in steps_of(again)}
    assert losses == {e.step: (e.loss, e.learning_rate, e.grad_norm) for e in steps_of(undisturbed)}
    one, other = (run.folder / "adapter_model.safetensors" for run in (undisturbed, again))
    assert one.read_bytes() == other.read_bytes()


def test_done_run_goes_on_with_more_epochs(folders: Folders) -> None:
    run = create_run(folders, make_settings(epochs=1))
    assert train_run(run, folders)
    run.set_state(run.state().status.DONE)
    assert train_run(create_run(folders, make_settings(epochs=2, if_exists="continue")), folders)
    assert [e.step for e in steps_of(run)] == [1, 2, 3, 4]


# The result


def test_result_loads_with_peft_alone_and_answers_alike(folders: Folders) -> None:
    b = bench(folders)
    run = create_run(folders, make_settings(name="whole", learning_rate=0.01, lora_dropout=0.5))
    assert train_run(run, folders)
    tokenizer = AutoTokenizer.from_pretrained(str(run.folder))
    assert tokenizer.chat_template == make_tokenizer(CHATML).chat_template
    base = AutoModelForCausalLM.from_pretrained(str(folders.models / "tiny"))
    ids = torch.tensor([b.data.train[0].input_ids])
    with torch.no_grad():
        without = base(input_ids=ids).logits
        plain = PeftModel.from_pretrained(base, str(run.folder)).eval()(input_ids=ids).logits
        last = run.checkpoints()[-1].folder
        ours = models.load_adapter(models.load_base(str(folders.models / "tiny"), make_settings()), last).eval()
        torch.testing.assert_close(plain, ours(input_ids=ids).logits, atol=0, rtol=0)
    assert not torch.allclose(plain, without, atol=1e-4)


def test_template_used_in_training_is_saved_with_the_adapter(folders: Folders) -> None:
    add_base(folders, "plain", template=None)
    run = create_run(folders, make_settings(base_model="plain", epochs=1))
    assert train_run(run, folders)
    assert "### Response:" in AutoTokenizer.from_pretrained(str(run.folder)).chat_template
    notes = [e.text for e in EventReader(run).read_new() if isinstance(e, Note)]
    assert "the template alpaca is used" in notes[0]


def test_evaluation_leaves_the_gradient_of_a_4_bit_model_as_it_was(folders: Folders) -> None:
    b = bench(folders, precision="4-bit", held_out_share=0.2)
    examples = [b.data.train[n] for n in range(2)]

    def gradients() -> dict[str, torch.Tensor]:
        b.lora.train()
        b.lora.zero_grad()
        b.trainer._loss_sum(examples).backward()
        return {name: p.grad.clone() for name, p in b.lora.named_parameters() if p.grad is not None}

    before = gradients()
    b.trainer._evaluate()
    after = gradients()
    assert all(torch.allclose(before[name], after[name], rtol=1e-3, atol=1e-5) for name in before)
    assert len(before) == len(adapter_of(b.lora))


@pytest.mark.parametrize("precision", ["4-bit", "8-bit"])
def test_quantized_base_is_trained_and_left_alone(folders: Folders, precision: str) -> None:
    b = bench(folders, precision=precision, batch_size=4, epochs=2, learning_rate=0.01, held_out_share=0.3)
    base = {n: p.detach().clone() for n, p in b.lora.named_parameters() if not p.requires_grad}
    adapter = adapter_of(b.lora)
    assert any(p.dtype in (torch.uint8, torch.int8) for p in base.values())
    assert b.trainer.train() is True
    losses = [e.loss for e in b.events(Step)]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    for name, parameter in b.lora.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name
    assert all(not torch.equal(adapter[name], after) for name, after in adapter_of(b.lora).items())


def test_more_epochs_go_on_with_the_rate_of_the_longer_schedule(folders: Folders) -> None:
    """The optimizer comes back with the rate that ended the shorter schedule, which is zero."""
    settings = {"batch_size": 2, "save_every": 0, "evaluate_every": 0, "warmup": 0}
    short = bench(folders, epochs=2, name="short", **settings)
    short.trainer.train()
    longer = bench(folders, epochs=4, name="longer", **settings)
    longer.trainer.train(short.run.checkpoints()[-1])
    whole = bench(folders, epochs=4, name="whole", **settings)
    whole.trainer.train()
    done = short.trainer.schedule.total_steps
    rates = [e.learning_rate for e in longer.events(Step)]
    assert rates == [e.learning_rate for e in whole.events(Step)][done:]
    assert min(rates) > 0


def test_stop_does_not_wait_for_a_long_evaluation(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(folders, held_out_share=0.5, evaluate_every=1, epochs=9)
    react(monkeypatch, lambda run, event: run.request_stop() if isinstance(event, Step) else None)
    assert b.trainer.train() is False
    assert [e.step for e in b.events(Evaluation)] == [0]
    assert [c.step for c in b.run.checkpoints()] == [1]


def test_modules_trained_fully_are_resumed_in_all_their_bits(folders: Folders) -> None:
    same: dict[str, Any] = {"precision": "16-bit", "train_fully": ["lm_head"], "save_every": 3, "evaluate_every": 0}
    undisturbed = create_run(folders, make_settings(name="undisturbed", **same))
    assert train_run(undisturbed, folders)
    broken = create_run(folders, make_settings(name="broken", **same))
    assert train_run(broken, folders)
    for checkpoint in broken.checkpoints()[1:]:
        shutil.rmtree(checkpoint.folder)
    broken.set_state(Status.FAILED)
    assert train_run(create_run(folders, make_settings(name="broken", if_exists="continue", **same)), folders)
    ours, theirs = (load_file(run.folder / "adapter_model.safetensors") for run in (undisturbed, broken))
    assert any("lm_head" in name and weight.dtype == torch.float32 for name, weight in ours.items())
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
