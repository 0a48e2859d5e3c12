"""A run is killed, cut off, starved and lied to, and reaches the adapter that an undisturbed one has, or says why not.

Each fault is real: signals to real workers and servers, a disk that is full, a limit of the address space. The short
form runs always; `-m soak` kills at fifty moments more.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tests.keeper import Keeper
from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.disk import free_bytes
from training.events import Note, Step
from training.run_state import Reason, Status
from training.runs import EventReader, Run
from training.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are made by Linux's means")
TIMEOUT = 240.0  # seconds; a crowded machine starts a training slowly
STEPS = 24
MIB = 2**20


def settings(**changes: Any) -> Settings:
    """A training of some seconds, with everything random in it that a training has."""
    values = {
        "dataset": "pairs.json",
        "epochs": STEPS / 2,  # two steps each
        "lora_dropout": 0.2,
        "neftune_noise": 2,
        "save_every": 3,
        "evaluate_every": 2,
        "keep_last": 4,
    }
    return make_settings(**(values | changes))


def until(true: Callable[[], object], what: str = "") -> None:
    """Wait until something is so; fails where it never is."""
    deadline = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@dataclass
class Scene:
    """A run, the server that keeps it, and what it should come to."""

    root: Path
    keeper: Keeper
    run: Run
    wanted: str  # the hash of an undisturbed run's adapter
    losses: list[float]  # of that run, by step

    def restart_server(self) -> None:
        """Kill the server and start another over the same folders."""
        self.keeper.kill()
        self.keeper = Keeper(self.root)

    def kill_worker(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the worker that is at it."""
        pid = self.run.stored_state().pid
        assert pid and pid != os.getpid()
        os.kill(pid, number)

    def go_on(self) -> None:
        """Continue the run once it has ended."""
        until(lambda: self.run.stored_state().status.ended, "the end")
        if self.run.state().status is not Status.DONE:
            self.keeper.ask(go_on=self.run.name)

    def wait_for_steps(self, count: int) -> None:
        """Wait until so many steps are in the events, those done twice included, or the run has ended."""
        until(
            lambda: self.run.state().status.ended or self.steps_written() >= count, f"{count} steps: {self.run.state()}"
        )

    def steps_written(self) -> int:
        """Step events in the file so far."""
        file = self.run.events_file
        return file.read_bytes().count(b'"type":"step"') if file.is_file() else 0

    def assert_as_undisturbed(self) -> None:
        """The run has come to its end, with the losses and the adapter it would have had."""
        until(lambda: self.run.stored_state().status.ended, "the end")
        state = self.run.state()
        assert state.status is Status.DONE, f"{state}\n{self.run.log_tail()}"
        assert adapter_hash(self.run) == self.wanted
        losses = {event.step: event.loss for event in EventReader(self.run).read_new() if isinstance(event, Step)}
        assert [losses[step] for step in sorted(losses)] == self.losses

    def notes(self) -> str:
        """What the run has told the reader."""
        return "\n".join(event.text for event in EventReader(self.run).read_new() if isinstance(event, Note))


def adapter_hash(run: Run) -> str:
    return hashlib.sha256((run.folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, on however many cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def prepare(root: Path) -> None:
    """Folders with a base model and data."""
    folders = make_folders(root)
    add_base(folders)
    add_dataset(folders)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run as nobody has troubled it."""
    root = tmp_path_factory.mktemp("undisturbed")
    prepare(root)
    keeper = Keeper(root)
    keeper.ask(submit=settings().model_dump())
    run = Run(root / "loras" / "test")
    until(lambda: run.state().status.ended)
    keeper.kill()
    assert run.state().status is Status.DONE, run.log_tail()
    return run


@contextmanager
def scene(root: Path, undisturbed: Run, asked: Settings, **environment: str) -> Iterator[Scene]:
    """A run that has just begun."""
    prepare(root)
    keeper = Keeper(root, **environment)
    keeper.ask(submit=asked.model_dump())
    losses = [event.loss for event in EventReader(undisturbed).read_new() if isinstance(event, Step)]
    set_up = Scene(root, keeper, Run(root / "loras" / "test"), adapter_hash(undisturbed), losses)
    try:
        yield set_up
    finally:
        set_up.keeper.kill()
        state = set_up.run.stored_state()
        if state.status.active and state.is_alive() and state.pid:
            os.kill(state.pid, signal.SIGKILL)


@pytest.fixture
def disturbed(tmp_path: Path, undisturbed: Run) -> Iterator[Scene]:
    """A run of the usual settings."""
    with scene(tmp_path, undisturbed, settings()) as made:
        yield made


# Kills


def disturb(scene: Scene, kind: str) -> None:
    """Do one thing to the run that it has to survive, and have it go on."""
    match kind:
        case "worker":
            scene.kill_worker()
        case "terminated":
            scene.kill_worker(signal.SIGTERM)
        case "server":
            scene.restart_server()
            return
        case "both":
            scene.keeper.kill()
            scene.kill_worker()
            scene.keeper = Keeper(scene.root)
    scene.go_on()


@pytest.mark.parametrize(("kind", "steps"), [("worker", 2), ("server", 5), ("both", 10), ("terminated", 14)])
def test_killed_once(disturbed: Scene, kind: str, steps: int) -> None:
    disturbed.wait_for_steps(steps)
    disturb(disturbed, kind)
    disturbed.assert_as_undisturbed()


def kills(scene: Scene, seed: int, count: int) -> int:
    """Disturb the run at so many random moments, as long as it goes; returns how many there were."""
    generator = random.Random(seed)
    for number in range(count):
        # Most moments lie in the training; some where it loads, saves or ends.
        if generator.random() < 0.8:
            scene.wait_for_steps(scene.steps_written() + generator.randint(1, 2))
        time.sleep(generator.random() * 0.3)
        if scene.run.state().status is Status.DONE:
            return number
        try:
            disturb(scene, generator.choice(["worker", "server", "both", "terminated"]))
        except ProcessLookupError:
            scene.go_on()  # it ended just now
    return count


def test_killed_at_random_moments(tmp_path: Path, undisturbed: Run) -> None:
    with scene(tmp_path, undisturbed, settings()) as disturbed:
        assert kills(disturbed, seed=1, count=3) > 0
        disturbed.assert_as_undisturbed()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_fifty_random_moments(tmp_path: Path, undisturbed: Run, seed: int) -> None:
    """Ten for each seed, in as many runs as it takes: most end after a handful."""
    done = 0
    for number in itertools.count():
        with scene(tmp_path / str(number), undisturbed, settings(save_every=1)) as disturbed:
            done += kills(disturbed, 100 * seed + number, 10 - done)
            disturbed.assert_as_undisturbed()
        if done == 10:
            return


def test_worker_that_is_killed_says_so(disturbed: Scene) -> None:
    disturbed.wait_for_steps(4)
    disturbed.kill_worker()
    until(lambda: disturbed.run.stored_state().status.ended)
    state = disturbed.run.stored_state()
    assert (state.status, state.reason, state.stage) == (Status.FAILED, Reason.KILLED, Status.TRAINING)


def test_death_that_nobody_saw_is_told_by_the_next_server(disturbed: Scene) -> None:
    disturbed.wait_for_steps(4)
    disturbed.keeper.kill()
    disturbed.kill_worker()
    assert disturbed.run.stored_state().status is Status.TRAINING
    disturbed.keeper = Keeper(disturbed.root)
    state = disturbed.run.stored_state()
    assert (state.status, state.reason) == (Status.FAILED, Reason.LOST)


# Damage


def test_checkpoint_that_was_cut_is_skipped_for_the_one_before(disturbed: Scene) -> None:
    until(lambda: [c.step for c in disturbed.run.checkpoints()][-2:] == [6, 9] or disturbed.run.state().status.ended)
    disturbed.kill_worker()
    until(lambda: disturbed.run.stored_state().status.ended)
    newest = disturbed.run.checkpoints()[-1]
    weights = newest.folder / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    disturbed.go_on()
    disturbed.assert_as_undisturbed()
    assert f"step {newest.step}" in disturbed.notes() and "damaged" in disturbed.notes()


def test_events_cut_in_the_middle_of_a_line(disturbed: Scene) -> None:
    disturbed.wait_for_steps(8)
    disturbed.kill_worker()
    until(lambda: disturbed.run.stored_state().status.ended)
    events = disturbed.run.events_file
    os.truncate(events, events.stat().st_size - 20)
    disturbed.go_on()
    disturbed.assert_as_undisturbed()


def test_clock_set_back_in_the_middle(tmp_path: Path, undisturbed: Run) -> None:
    clock = str(Path(__file__).parent / "clock_back")
    signal_file = str(tmp_path / "loras" / "test" / "checkpoint-9")
    with scene(tmp_path, undisturbed, settings(), PYTHONPATH=clock, CLOCK_GOES_BACK_WITH=signal_file) as disturbed:
        disturbed.wait_for_steps(10)
        disturbed.restart_server()
        disturbed.assert_as_undisturbed()
        moments = [json.loads(line)["time"] for line in disturbed.run.events_file.read_bytes().splitlines()]
        assert any(later < before - 86_400 for before, later in itertools.pairwise(moments))


# Scarcity


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes in memory, on `folder`."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small disk can be made by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk, on which somebody else writes too, up to so many bytes."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        while (free := free_bytes(disk)) > leave:
            with suppress(OSError):  # it was quicker: once more, with what is free now
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free - leave)
    return filler


@pytest.mark.parametrize("leave", [0, 4 * MIB])
def test_full_disk_is_waited_for(tmp_path: Path, undisturbed: Run, leave: int) -> None:
    """With nothing left not even an event can be written; with a little it can, and a checkpoint cannot."""
    with small_disk(tmp_path / "loras", 260 * MIB) as disk, scene(tmp_path, undisturbed, settings()) as disturbed:
        until(lambda: len(disturbed.run.checkpoints()) >= 2 or disturbed.run.state().status.ended)
        filler = fill(disk, leave)
        seen = disturbed.steps_written()
        if leave:
            until(lambda: "disk is full" in disturbed.run.state().cause, "the run to say that it waits")
            assert "goes on as soon as there is room" in disturbed.run.state().cause
        else:
            time.sleep(2)  # whatever it does now, it must do no harm
        state = disturbed.run.state()
        assert state.status.active and state.is_alive() and disturbed.steps_written() <= seen + 3
        newest = disturbed.run.checkpoints()[-1]
        load_file(newest.folder / "adapter_model.safetensors")
        filler.unlink()
        disturbed.assert_as_undisturbed()


def test_memory_that_runs_out_is_recovered_from(tmp_path: Path) -> None:
    """A real limit of the address space: the worker fails, and another goes on with half the micro-batch."""
    # So many tokens at once that their blocks are too large to be kept: each step asks the system for them anew.
    rows = [{"question": "Q" * 300, "answer": f"{n:02}" * 60} for n in range(70)]
    prepare(tmp_path)
    (tmp_path / "datasets" / "long.json").write_text(json.dumps(rows))
    keeper = Keeper(tmp_path)
    run = Run(tmp_path / "loras" / "test")
    try:
        asked = settings(dataset="long.json", batch_size=64, micro_batch_size=64, epochs=5000, save_every=2)
        keeper.ask(submit=asked.model_dump())
        until(lambda: len(run.checkpoints()) >= 2 or run.state().status.ended)
        worker = psutil.Process(run.stored_state().pid)
        worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms - 300 * MIB, -1))
        until(lambda: run.events_file.read_text().count('"type":"started"') == 2, "the second worker to train")
        trained = run.checkpoints()[-1].step
        until(lambda: run.checkpoints()[-1].step > trained, "it to get further")
        run.request_stop()
        until(lambda: run.stored_state().status.ended, "the end")
    finally:
        keeper.kill()
    assert run.state().status is Status.STOPPED and run.has_result()
    assert run.settings().micro_batch_size == 32 and run.settings().batch_size == 64
    notes = [event.text for event in EventReader(run).read_new() if isinstance(event, Note)]
    told = "Memory ran out with a micro-batch size of 64: the training goes on from its last checkpoint with 32."
    assert any(note.startswith(told) for note in notes)
