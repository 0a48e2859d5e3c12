"""`python -m training.memory_check <folder>`: real training steps, measured to see which micro-batches fit.

The request lies in the folder; the report is written there after every finding, so that one is left if it is killed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import set_seed

from training import data, model
from training.adapters import earlier_adapter
from training.base_models import locate_base_model
from training.earlier import training_tokenizer
from training.errors import UserError
from training.gradient_checkpointing import decide
from training.loading import add_method, prepare_base
from training.memory_checks import REPORT_FILE, REQUEST_FILE, Report, Request, Tried, spare_memory
from training.paths import write_atomically
from training.runs import Run
from training.settings import Settings
from training.trainer import Trainer

_NO_RATE = 1e-12
_TIMED_MICRO_BATCHES = 4  # of a batch at most: more would only take longer
_MOST_TIMED, _LONG_ENOUGH = 20, 2.0  # steps; seconds, because what else runs on the computer disturbs short ones
_EVALUATION_SHARE = 1 / 3  # of a step's time a token: it has no way back, which takes twice as long as the way there
_GPU_SHARE = 0.95  # of what is free: memory falls to pieces when lengths change
_CLEAR = Path("/proc/self/clear_refs")  # see proc(5): a 5 makes the peak begin anew
_STATUS, _PEAK = Path("/proc/self/status"), "VmHWM:"  # in kB
_RAN_OUT = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
log = logging.getLogger("training.memory_check")


class Gauge(Protocol):
    """Measures the memory of the device."""

    free: int  # bytes that this process could have at the beginning
    total: int

    def begin(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> int:
        """The most bytes that were in use at once since `begin`."""

    def fits(self, peak: int) -> bool:
        """Whether so many bytes leave enough to live on."""

    def foresees(self, peak: int) -> bool:
        """Whether trying what may need so many bytes does no harm."""


class GpuMemory:
    """A GPU's: it says when it is full, and no other program suffers."""

    def __init__(self) -> None:
        self.free, self.total = torch.cuda.mem_get_info()

    def begin(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def fits(self, peak: int) -> bool:
        return peak <= self.free * _GPU_SHARE

    def foresees(self, peak: int) -> bool:
        return True


class MainMemory:
    """A processor's. The system promises more than there is, so that what would be too much must not be tried."""

    def __init__(self) -> None:
        self.total = psutil.virtual_memory().total
        self.free = self._room()

    def begin(self) -> None:
        if _CLEAR.is_file():  # elsewhere it cannot be forgotten, and what loading took counts for the steps too
            _CLEAR.write_text("5")

    def peak(self) -> int:
        if _STATUS.is_file():
            status = _STATUS.read_text()
            return 1024 * int(status.partition(_PEAK)[2].split()[0])
        if psutil.WINDOWS:
            return int(psutil.Process().memory_info().peak_wset)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS

    def fits(self, peak: int) -> bool:
        return True  # it did

    def foresees(self, peak: int) -> bool:
        return peak <= self._room() - spare_memory()

    def _room(self) -> int:
        return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


class MemorySearch:
    """Takes steps with the longest examples, more of them at a time, until memory is full or the batch is."""

    def __init__(self, trainer: Trainer, prepared: data.PreparedData, gauge: Gauge) -> None:
        self._trainer = trainer
        self._lengths = prepared.train.lengths
        self._evaluated = sum(prepared.evaluation.lengths)  # tokens of an evaluation
        self._gauge = gauge
        self._by_length = sorted(range(len(self._lengths)), key=self._lengths.__getitem__)

    def run(self, settings: Settings, report: Report, tell: Callable[[], None]) -> None:
        """Fill the report, and `tell` whenever there is something new in it."""
        self._warm_up()
        at_rest = model.memory_in_use()
        for size in _sizes(report):
            report.trying, report.doing = size, f"micro-batch {size}"
            tell()
            if not self._gauge.foresees(_foreseen(report, size, at_rest)):
                report.tried.append(Tried(micro_batch_size=size, fits=False))
            else:
                report.tried.append(self._try(size, accumulates=size < report.most))
            if not report.tried[-1].fits:
                break
            if size == report.asked:
                self._time(settings, report, tell)
                # Several micro-batches of different lengths may have needed more than the longest alone.
                report.tried[-1] = self._tried(size)
        if report.timed_at is None and (largest := report.largest):
            report.trying = largest.micro_batch_size
            self._time(settings, report, tell)

    def _warm_up(self) -> None:
        """One step that the optimizer takes, with the shortest example: its states are there from now on."""
        # The first ones of float16 overflow and are left out; of too many such the trainer complains.
        while not math.isfinite(self._trainer.step_on(self._by_length[:1], 1).grad_norm):
            pass
        self._set_gradients()
        self._gauge.begin()

    def _set_gradients(self) -> None:
        """The gradients that earlier micro-batches of the same step leave in memory."""
        for parameter in self._trainer.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def _try(self, size: int, *, accumulates: bool) -> Tried:
        self._trainer.model.zero_grad()
        self._gauge.begin()
        ran_out = False
        try:
            if accumulates:
                self._set_gradients()
            self._trainer.step_on(self._by_length[-size:], size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.info("micro-batch %d: %s", size, error)
            ran_out = True  # and no more here: the error holds on to all that was computed
        if ran_out:
            self._trainer.model.zero_grad()
            gc.collect()
            return Tried(micro_batch_size=size, fits=False)
        return self._tried(size)

    def _tried(self, size: int) -> Tried:
        """What was measured since the gauge began."""
        peak = self._gauge.peak()
        reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
        return Tried(micro_batch_size=size, fits=self._gauge.fits(peak), peak=peak, reserved=reserved)

    def _time(self, settings: Settings, report: Report, tell: Callable[[], None]) -> None:
        """The speed in a step with examples as they come, and from it the time of the whole training."""
        size = report.trying or 1
        report.doing = f"the speed with micro-batch {size}"
        tell()
        schedule, tokens, seconds = self._trainer.schedule, 0, 0.0
        for number in range(_MOST_TIMED):
            step = self._trainer.step_on(schedule.batch(number)[: size * _TIMED_MICRO_BATCHES], size)
            tokens, seconds = tokens + step.tokens, seconds + step.seconds
            if seconds >= _LONG_ENOUGH:
                break
        report.timed_at, report.tokens_per_second = size, tokens / seconds
        steps = schedule.total_steps
        trained = sum(self._lengths) / schedule.steps_per_epoch * steps
        evaluated = self._evaluated * _evaluations(settings, steps) * _EVALUATION_SHARE
        report.total_seconds = (trained + evaluated) / report.tokens_per_second
        tell()


def main() -> int:
    """Check, and write what was found; the exit code is 0 unless it failed."""
    parser = argparse.ArgumentParser(prog="python -m training.memory_check", description="Measure what fits in memory.")
    parser.add_argument("folder", type=Path, help="holds the request")
    folder = parser.parse_args().folder
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    request = Request.model_validate_json((folder / REQUEST_FILE).read_text(encoding="utf-8"))
    report, asked_by = Report(), psutil.Process().parent()

    def tell() -> None:
        if asked_by is None or not asked_by.is_running():
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit("nobody waits for the answer any more")
        log.info(report.doing)
        write_atomically(folder / REPORT_FILE, report.model_dump_json(indent=2))

    try:
        measure(folder, request, report, tell)
    except UserError as error:
        report.problem = str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.exception("memory ran out")
        report.ran_out()
    tell()
    return 1 if report.problem else 0


def measure(folder: Path, request: Request, report: Report, tell: Callable[[], None]) -> None:
    """Prepare data and model as a training does, and search; `tell` is called whenever the report has news."""
    settings, folders = request.settings, request.folders
    if settings.start_as == "merge it into the base":
        settings = settings.model_copy(update={"start_from": ""})  # the sum is as large as the base
    # The same steps many times over: nothing is to be learnt from them, or to go off the rails.
    settings = settings.model_copy(update={"learning_rate": _NO_RATE})
    gauge: Gauge = GpuMemory() if model.device().type == "cuda" else MainMemory()
    report.on_gpu, report.free, report.total = isinstance(gauge, GpuMemory), gauge.free, gauge.total
    report.doing = "preparing the data"
    tell()
    set_seed(settings.seed)
    source = locate_base_model(folders, settings.base_model, run_code=settings.trust_remote_code)
    tokenizer = training_tokenizer(source, settings, folders)
    data.set_template(tokenizer, settings, folders)
    prepared = data.prepare(settings, folders, tokenizer)
    report.most = min(settings.batch_size, len(prepared.train))
    report.asked = min(settings.micro_batch_size, report.most)
    report.longest = prepared.train.longest
    report.doing = "loading the model"
    tell()
    earlier = earlier_adapter(folders, settings) if settings.start_from else None
    decision = decide(settings, source, prepared.train, earlier)
    report.gradient_checkpointing = decision.on
    base = prepare_base(source, tokenizer, decision.applied_to(settings))
    trainable, _ = add_method(base, settings, earlier)
    trainer = Trainer(Run(folder), settings, trainable, prepared, int(tokenizer.pad_token_id))
    MemorySearch(trainer, prepared, gauge).run(settings, report, tell)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; many are told apart by their words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return any(words in str(error) for words in _RAN_OUT)


def _sizes(report: Report) -> list[int]:
    """1, 2, 4 and so on, the size that was asked for, and all examples of a batch at once."""
    doubled = (2**power for power in range(report.most.bit_length()))
    return sorted({*doubled, report.asked, report.most})


def _foreseen(report: Report, size: int, at_rest: int) -> int:
    """The peak of a size in bytes, if memory goes on growing as it did over the two sizes before."""
    known = [(0, at_rest), *((tried.micro_batch_size, tried.peak or 0) for tried in report.tried)][-2:]
    (smaller, low), (larger, high) = known[0], known[-1]
    return high + (max(high - low, 0) * (size - larger) // (larger - smaller) if larger > smaller else 0)


def _evaluations(settings: Settings, steps: int) -> int:
    """How often a training of so many steps evaluates."""
    if not settings.evaluate_every:
        return 2
    due = (range(every, steps, every) for every in (settings.evaluate_every, settings.save_every) if every)
    return len({0, steps}.union(*due))


if __name__ == "__main__":
    sys.exit(main())
