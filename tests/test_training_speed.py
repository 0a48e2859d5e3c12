"""The benchmark of the training's speed: what it counts, what it compares, and that its rows learn the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks import speed_rounds, speed_rows, speed_trials, training_speed
from benchmarks.matrix_rate import MatrixRate
from benchmarks.peers import CHECKPOINTED, GROUPED, PADDED, PEERS, Tally, collate
from benchmarks.shapes import SHAPES, Shape
from benchmarks.speed_cases import CASES, Case, Options, make_job, make_plan, peers, with_precision
from benchmarks.speed_job import Job, Plan, Request, Step
from benchmarks.speed_models import load_base, make_base, put_weights, save_adapter, with_lora
from benchmarks.speed_outcomes import Outcome, own_folder
from benchmarks.speed_rounds import Measured
from benchmarks.speed_table import heading, table
from training import model
from training.errors import UserError

TINY = Shape("tiny", 64, 2, 96, 4, 2, 16, 4096)
ANSWERS = Case("answers", False, 512, 8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(TINY, ANSWERS, Options(rounds=2), tmp_path)


class Talk:
    """Asks for a step to warm up and then for all others."""

    def __init__(self, *requests: Request) -> None:
        self._requests, self.answers = requests, list[dict[str, Any]]()

    def requests(self) -> Iterator[Request]:
        yield from self._requests

    def answer(self, content: dict[str, Any]) -> None:
        self.answers.append(json.loads(json.dumps(content)))


def run(job: Job, monkeypatch: pytest.MonkeyPatch, *requests: Request) -> list[dict[str, Any]]:
    """What a row answers, run in this process."""
    talk = Talk(*requests)
    monkeypatch.setattr(speed_rows, "Talk", lambda: talk)
    speed_rows.serve(job.write())
    return talk.answers


@pytest.mark.parametrize(("name", "parameters"), [("1B", 1_235_814_400), ("8B", 8_030_261_248)])
def test_the_gpu_shapes_are_those_of_the_llamas(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name].config())
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("shape", ["5M", "27M", "130M"])
def test_the_other_shapes_have_about_as_many_parameters_as_their_names_say(shape: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape].config())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(int(shape[:-1]) * 1e6, rel=0.05)
    in_layers = [p.numel() for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    assert sum(in_layers) == SHAPES[shape].linear_parameters()


def test_the_operations_are_those_that_torch_counts_less_what_no_training_needs(job: Job) -> None:
    model = with_lora(AutoModelForCausalLM.from_config(TINY.config("eager")), job)
    length = 20
    ids = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    width = TINY.heads * TINY.head_dim
    masked = 12 * (length**2 - length * (length + 1) // 2) * width * TINY.layers  # torch computes it all the same
    last = 4 * TINY.hidden * TINY.vocabulary  # the head for the last token, which has no label
    # The embedding is not trained, so that the first layer's input has no gradient.
    first = [sizes for name, sizes in TINY.linears().items() if name[-6:] in ("q_proj", "k_proj", "v_proj")]
    without = sum(2 * length * (inside * out + job.rank * inside) for inside, out in first)
    expected = TINY.operations(job.rank, [(length, length - 1)]) + masked + last - without
    assert counter.get_total_flops() == expected


def test_the_matrices_are_those_of_a_layer_there_and_back() -> None:
    rate = MatrixRate(TINY, torch.float32, torch.device("cpu"))
    assert rate.operations == 4 * 2048 * TINY.linear_parameters() / TINY.layers
    assert rate.measure() > 0


def test_a_lora_for_another_rank_is_refused(job: Job, tmp_path: Path) -> None:
    model = with_lora(load_base(job), job)
    assert get_peft_model_state_dict(model).keys() == load_file(job.adapter).keys()
    save_adapter(TINY, 4, 42, tmp_path / "other.safetensors")
    with pytest.raises((RuntimeError, ValueError)):
        put_weights(model, str(tmp_path / "other.safetensors"))


def test_a_base_in_4_bit_is_made_on_the_device_and_the_same_for_a_seed() -> None:
    first, second = (make_base(TINY, "4-bit", "sdpa", 1) for _ in range(2))
    linears = [m for m in first.modules() if isinstance(m, Linear4bit)]
    assert len(linears) == 7 * TINY.layers
    ids = torch.arange(12)[None]
    logits = first(input_ids=ids).logits
    assert logits.isfinite().all() and torch.equal(logits, second(input_ids=ids).logits)
    assert not any(p.requires_grad for p in first.parameters())
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_padded_and_packed_rows_are_counted_alike() -> None:
    rows = [(5, 2), (3, 2)]
    examples = [
        {"input_ids": [7] * 5, "labels": [-100, -100, -100, 7, 7]},
        {"input_ids": [7] * 3, "labels": [7, 7, 7]},  # nothing stands before the first, to predict it from
    ]
    model = AutoModelForCausalLM.from_config(TINY.config())
    tally = Tally(model)
    padded = collate(examples)
    packed = {
        "input_ids": torch.tensor([[token for e in examples for token in e["input_ids"]]]),
        "labels": torch.tensor([[label for e in examples for label in e["labels"]]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]),
    }
    for batch, computed in ((padded, 10), (packed, 8)):
        tally.note(batch)
        model(**{name: value for name, value in batch.items() if name != "labels"})
        assert tally.step(1.0) == Step(1.0, computed, rows)


def test_a_plan_has_whole_batches_only(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    file = tmp_path / "rows.json"
    rows = [{"instruction": f"Count to {number}.", "output": "One, two."} for number in range(20)]
    file.write_text(json.dumps(rows), encoding="utf-8")
    settings = {"dataset": [str(file)], "held_out_share": 0}
    plan = make_plan(settings, 8, Options(rounds=4), work)
    assert [len(numbers) for numbers in plan.numbers] == [8] * 5
    assert plan.numbers[:2] != plan.numbers[2:4]  # another epoch, another order
    assert all(sum(trained for _, trained in plan.rows(step)) > 0 for step in range(5))
    with pytest.raises(UserError, match="makes 20 examples and a batch has 32"):
        make_plan(settings, 32, Options(), work)


def test_text_that_ships_fills_its_batches(tmp_path: Path) -> None:
    job = make_job(TINY, Case("long-text", True, 2048, 8), Options(), tmp_path)
    lengths = [length for step in range(4) for length, _ in Plan.read(job.plan).rows(step)]
    assert sorted(lengths)[16] > 1900 and len(lengths) == 32


def test_micro_batches_that_do_not_make_up_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A batch of 8 has no whole micro-batches of 3"):
        make_job(TINY, ANSWERS, Options(micro_batch=3), tmp_path)


def test_all_rows_learn_the_same(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    plan = Plan.read(job.plan)
    for kind in (speed_rows.GRAFT, PADDED, CHECKPOINTED, GROUPED):
        row = replace(job, kind=kind, folder=str(Path(job.folder).parent / kind))
        answers = run(row, monkeypatch, {"steps": 1}, {"steps": 2})
        assert [len(answer["steps"]) for answer in answers] == [1, 2] and answers[-1]["peak"] > 0
        steps = [Step(**step) for answer in answers for step in answer["steps"]]
        if kind != GROUPED:
            expected = [sum(length for length, _ in plan.rows(step)) for step in range(3)]
            assert [step.tokens for step in steps] == expected
        assert all(step.computed >= step.tokens for step in steps)
        judge = replace(job, kind=speed_rows.JUDGE, folder=f"{row.folder}-judge")
        losses[kind] = run(judge, monkeypatch, {"adapter": str(row.trained)})[0]["loss"]
        before = run(judge, monkeypatch, {"adapter": job.adapter})[0]["loss"]
    assert losses[speed_rows.GRAFT] == pytest.approx(losses[PADDED], rel=1e-5)
    assert losses[CHECKPOINTED] == pytest.approx(losses[PADDED], rel=1e-5)
    assert before - losses[PADDED] > 1e-3 and before - losses[GROUPED] > 1e-3


def test_rows_in_16_bits_learn_the_same_too(job: Job, short_numbers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged in 32 bits, where what bfloat16 leaves out would show."""
    losses = {}
    for precision, kind in (("32-bit", PADDED), ("16-bit", PADDED), ("16-bit", speed_rows.GRAFT)):
        row = replace(with_precision(job, precision), kind=kind)
        row = replace(row, folder=own_folder(row, 4))
        run(row, monkeypatch, {"steps": 3})
        judge = replace(job, kind=speed_rows.JUDGE, folder=f"{job.folder}-judge")
        losses[precision, kind] = run(judge, monkeypatch, {"adapter": str(row.trained)})[0]["loss"]
    assert len(set(losses.values())) == 3
    assert list(losses.values()) == pytest.approx([losses["32-bit", PADDED]] * 3, rel=1e-3)


@pytest.fixture
def short_numbers() -> None:
    """Skips where Graft computes in 32 bits whatever is asked for."""
    if model.compute_dtype("16-bit") == torch.float32:
        pytest.skip("this processor has no products in 16 bits")


def test_peers_in_16_bits_have_weights_of_that_length(job: Job) -> None:
    short = with_precision(job, "16-bit")
    assert {p.dtype for p in load_base(short).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_base(job).parameters()} == {torch.float32}
    trained = [p for p in with_lora(load_base(short), short).parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}


def test_every_precision_has_all_peers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert [row.kind for row in peers(job)] == list(PEERS)
    short = peers(with_precision(job, "16-bit"))
    assert [row.kind for row in short] == list(PEERS) and not any(row.flash for row in short)
    on_gpu = peers(replace(with_precision(job, "16-bit"), base=""))
    assert [row.kind for row in on_gpu] == list(PEERS) and [row.flash for row in on_gpu] == [False] * 3 + [True] * 2


class Speeds:
    """Rows whose speed is known beforehand; notes how many steps of how many examples they took."""

    def __init__(self, speeds: dict[str, dict[int, float]]) -> None:
        self._speeds, self.taken = speeds, list[tuple[str, int, int]]()

    def row(self, job: Job, _: Options) -> SpeedOf:
        return SpeedOf(self, job)

    def ask(self, job: Job, request: Request) -> dict[str, Any]:
        if "steps" not in request:
            return {"rate": 1.0, "loss": 1.0}
        self.taken.append((job.kind, job.micro_batch, job.batch))
        seconds = 100 / self._speeds[job.kind][job.micro_batch]
        return {"steps": [{"seconds": seconds, "computed": 100, "rows": [(100, 9)]}] * request["steps"], "peak": 1}


class SpeedOf:
    def __init__(self, all_speeds: Speeds, job: Job) -> None:
        self._all, self._job = all_speeds, job

    def __enter__(self) -> SpeedOf:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, request: Request) -> dict[str, Any]:
        return self._all.ask(self._job, request)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    known = Speeds(
        {
            speed_rows.GRAFT: {1: 5.0, 2: 6.0, 4: 7.0, 8: 8.0},
            PADDED: {1: 4.0, 2: 3.0, 4: 2.0, 8: 1.0},
            GROUPED: {1: 1.0, 2: 2.0, 4: 3.0, 8: 1.0},
            CHECKPOINTED: {4: 1.0},
            speed_rows.MATRIX: {},
        }
    )
    for module in (speed_trials, speed_rounds):
        monkeypatch.setattr(module, "Row", known.row)
    return known


@pytest.mark.parametrize("apart", [False, True])
def test_rows_are_those_at_the_common_micro_batch_and_at_the_best(job: Job, speeds: Speeds, apart: bool) -> None:
    options = Options(own_best=(PADDED, GROUPED), apart=apart)
    found = speed_trials.rows(replace(job, batch=16), options, lambda _: None)
    assert [(o.job.kind, o.job.micro_batch, o.is_best) for o in found] == [
        (speed_rows.GRAFT, 4, False),
        (PADDED, 4, False),
        (GROUPED, 4, True),
        (CHECKPOINTED, 4, False),
        (speed_rows.GRAFT, 1, False),
        (speed_rows.GRAFT, 8, True),
        (PADDED, 1, True),
    ]
    assert {batch for _, _, batch in speeds.taken} == {8} and len({o.job.folder for o in found}) == 7
    assert {o.job.batch for o in found} == {16}


def test_memory_that_is_short_is_told_of_and_rows_follow_one_another(
    job: Job, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job, batch=16)  # other than in the trials
    for is_tight in (False, True):
        monkeypatch.setattr(speed_rounds, "is_tight", lambda *_: is_tight)  # noqa: B023
        speeds.taken.clear()
        told: list[str] = []
        measured = speed_rounds.measure(job, Options(), told.append)
        assert measured.in_turns != is_tight and any("do not fit" in words for words in told) == is_tight
        assert all(len(o.rounds) == 3 and not o.failed for o in measured.outcomes)
        timed = [(kind, micro_batch) for kind, micro_batch, batch in speeds.taken if batch == 16][-6:]
        assert (len(set(timed)) == 6) != is_tight


def outcome(job: Job, *seconds: float, **values: Any) -> Outcome:
    """A row whose rounds took so long for 100 tokens each, 25 of them padding."""
    return Outcome(job, rounds=[[Step(second, 100, [(75, 30)])] for second in seconds], **values)


def cells(*measured: Measured) -> list[list[str]]:
    """Of the table, without the line under its head."""
    head, _, *rows = table(measured).splitlines()
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert {len(row) for row in found} == {11}
    return found


def test_the_table_compares_round_by_round(job: Job) -> None:
    graft = outcome(job, 1.0, 1.0, 2.0, peak=100 * 2**20, loss=3.0)
    slower = outcome(replace(job, kind=PADDED), 2.0, 3.0, 2.0, peak=200 * 2**20, is_best=True)
    fails = outcome(replace(job, kind=CHECKPOINTED), failed="CUDA ran out | of memory")
    limit = 2.0 * TINY.operations(job.rank, [(75, 30)])
    found = cells(Measured([graft, slower, fails], [limit] * 3, 3.5, True))
    assert found[1] == ["Graft", "32-bit", "4", "75", "30", "25%", "100", "3.00000", "50%", "", ""]
    ratios = ["2.00 (1.00 to 3.00)", "0.50"]
    assert found[2] == [PADDED, "32-bit", "4 (its best)", "38", "15", "25%", "200", "", "25%", *ratios]
    assert found[3][3] == "failed: CUDA ran out / of memory"


def test_a_peer_at_its_best_is_compared_with_what_graft_does_in_its_memory(job: Job) -> None:
    at_four, at_one = outcome(job, 1.0, peak=100), outcome(replace(job, micro_batch=1), 2.0, peak=60)
    best = outcome(replace(job, micro_batch=8), 0.5, peak=200, is_best=True)
    rows = [
        outcome(replace(job, kind=PADDED, micro_batch=size), 4.0, peak=peak, is_best=size != 4)
        for size, peak in ((4, 50), (1, 250), (1, 120), (1, 80), (1, 50))
    ]
    found = cells(Measured([at_four, *rows, at_one, best], [1.0], 3.5, True))
    assert [row[-2].partition(" ")[0] + row[-2].rpartition(")")[2] for row in found[2:7]] == [
        "4.00",
        "8.00, Graft at 8",
        "4.00, Graft at 4",
        "2.00",
        "2.00",
    ]
    assert found[7][-2:] == found[8][-2:] == ["", ""]


def test_each_precision_is_compared_with_itself(job: Job) -> None:
    short = with_precision(job, "16-bit")
    limit = 1.0 * TINY.operations(job.rank, [(75, 30)])
    long_rows = Measured([outcome(job, 4.0, peak=8), outcome(replace(job, kind=PADDED), 8.0, peak=8)], [limit], 1, True)
    short_rows = Measured(
        [outcome(short, 1.0, peak=4), outcome(replace(short, kind=PADDED), 3.0, peak=8)], [4 * limit], 1, False
    )
    found = cells(long_rows, short_rows)
    assert [row[1] for row in found[1:]] == ["32-bit", "32-bit", "16-bit", "16-bit"]
    assert [row[-3] for row in found[1:]] == ["25%", "12%", "25%", "8%"]
    assert [row[-2:] for row in found[1:]] == [
        ["", ""],
        ["2.00 (2.00 to 2.00)", "1.00"],
        ["", ""],
        ["3.00 (3.00 to 3.00)", "0.50"],
    ]


def test_the_heading_says_what_was_measured_and_how(job: Job) -> None:
    rows = [outcome(job, 1.0)], [outcome(with_precision(job, "16-bit"), 1.0)]
    measured = [Measured(rows[0], [1.5e11, 1.6e11], 8.5, True), Measured(rows[1], [3e11], None, False)]
    said = heading(job, ANSWERS, Options(rounds=2), measured)
    assert "batch 8, cutoff 512" in said
    assert "32-bit: in turns, matrix multiplication 150 to 160 GFLOP/s, loss before 8.50000; " in said
    assert "16-bit: one row after the other, matrix multiplication 300 to 300 GFLOP/s, loss before unknown" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu"], "There is no GPU that torch can use on this computer: leave --gpu out."),
        (["--precision", "4-bit"], "4-bit is measured with --gpu: choose 32-bit or 16-bit."),
        (["--model", "8B"], "8B is measured with --gpu: choose one of 5M, 27M, 130M."),
        (["--quick", "--data", "no-such-file.json"], "no-such-file.json"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_speed.main(arguments) == 1
    out = capsys.readouterr()
    assert said in out.err and len(out.err.splitlines()) == 1 and not out.out


def test_a_processor_without_products_in_16_bits_leaves_them_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "compute_dtype", lambda _: torch.float32)
    assert training_speed.main(["--precision", "16-bit", "--quick"]) == 1
    assert "choose 32-bit" in capsys.readouterr().err
    monkeypatch.setitem(SHAPES, "27M", TINY)
    asked: list[tuple[str, tuple[str, ...]]] = []

    def measure(job: Job, options: Options, _: object) -> Measured:
        asked.append((job.precision, options.own_best))
        return Measured([outcome(job, 1.0)], [1.0], 1.0, True)

    monkeypatch.setattr(speed_rounds, "measure", measure)
    assert training_speed.main(["--quick"]) == 0
    assert asked == [("32-bit", CASES["answers"].own_best)]
    monkeypatch.setattr(model, "compute_dtype", lambda _: torch.bfloat16)
    assert training_speed.main(["--quick", "--every-best"]) == 0
    assert asked[1:] == [("32-bit", PEERS), ("16-bit", PEERS)]


def test_rounds_of_nothing_are_refused() -> None:
    with pytest.raises(SystemExit):
        training_speed.main(["--rounds", "0"])
