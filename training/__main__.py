"""`python -m training --dataset ... --name ...`: a training from the command line; the page shows it too."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.copied_settings import copy_settings
from training.errors import UserError
from training.events import Note
from training.history import History
from training.parsing import parse_runnable
from training.paths import Folders
from training.presets import load_presets, values_of
from training.run_state import Status
from training.runs import EventReader, Run, find_run, is_adapter
from training.settings import Group
from training.settings_info import SettingInfo, describe
from training.supervisor import Supervisor

_POLL = 0.5  # seconds


def build_parser() -> argparse.ArgumentParser:
    """One flag a setting, from the declaration; what is not given keeps its default."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a LoRA. The run appears on the page too. Ctrl+C stops it after the current step and saves; "
        "Ctrl+C once more cancels it at once. While another run is trained, this one waits its turn.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--preset", default="", help="start from this preset, by its label, such as 'Style'")
    parser.add_argument(
        "--copy-settings-from", metavar="LORA", default="", help="start from an earlier LoRA's settings"
    )
    for flag, folder in (("models", Folders.models), ("datasets", Folders.datasets), ("loras", Folders.loras)):
        parser.add_argument(f"--{flag}-dir", type=Path, default=folder, help=f"default: {folder.name}/")
    groups: dict[str, Any] = {}
    for info in describe():
        if info.group not in groups:
            groups[info.group] = parser.add_argument_group(info.group.value)
        _add_flag(groups[info.group], info)
    return parser


def _add_flag(group: Any, info: SettingInfo) -> None:
    flag = f"--{info.name.replace('_', '-')}"
    default = " ".join(info.default) if isinstance(info.default, list) else info.default
    text = f"{info.help} Default: {default if default != '' else 'none'}".replace("%", "%%")
    if info.kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif info.kind is list:
        is_file = info.group in (Group.DATASET, Group.RAW_TEXT)
        group.add_argument(flag, nargs="+", metavar="FILE" if is_file else "NAME", help=text)
    else:
        # All stays text here: the declaration checks it and says what is wrong in words.
        group.add_argument(flag, metavar=info.kind.__name__.upper(), help=text)


def main(arguments: list[str] | None = None) -> int:
    """Train and show the progress; the exit code is 0 unless something was wrong or failed."""
    given = vars(build_parser().parse_args(arguments))
    folders = Folders(
        models=given.pop("models_dir").absolute(),
        datasets=given.pop("datasets_dir").absolute(),
        loras=given.pop("loras_dir").absolute(),
        data_anywhere=True,
    )
    try:
        folders.make()
        values = _starting_values(folders, given.pop("preset"), given.pop("copy_settings_from"))
        supervisor = Supervisor(folders)
        run = supervisor.submit(parse_runnable(values | _with_full_paths(folders, given)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    supervisor.keep_looking()
    return _follow(run, supervisor)


def _starting_values(folders: Folders, preset: str, earlier: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if earlier:
        copied = copy_settings(folders, find_run(folders, earlier))
        values = copied.settings.model_dump()
        for note in copied.notes:
            print(note, file=sys.stderr)
    if preset:
        presets, _ = load_presets(folders)
        by_label = {p.label: p for p in presets}
        if preset not in by_label:
            raise UserError(f"There is no preset '{preset}': choose one of {', '.join(by_label)}.")
        values |= values_of(by_label[preset])
    return values


def _with_full_paths(folders: Folders, given: dict[str, Any]) -> dict[str, Any]:
    """Files named relative to the shell's folder, which the worker does not share, get their whole path."""
    result = dict(given)
    for name in ("dataset", "raw_text"):
        if name in given:
            result[name] = [_full_path(folders, value) for value in given[name]]
    if "evaluation_file" in given:
        result["evaluation_file"] = _full_path(folders, given["evaluation_file"])
    # The last choice of data wins over the one that a preset or a copy brought along.
    if given.get("dataset") and "raw_text" not in given:
        result["raw_text"] = []
    if given.get("raw_text") and "dataset" not in given:
        result["dataset"] = []
    return result


def _full_path(folders: Folders, name: str) -> str:
    # Not Path.exists, which raises for a name longer than the system allows.
    is_elsewhere = name and not os.path.exists(folders.datasets / name) and os.path.exists(name)
    return str(Path(name).absolute()) if is_elsewhere else name


def _follow(run: Run, supervisor: Supervisor) -> int:
    """Show a run's events until it ends; Ctrl+C asks it to stop, and a second time cancels it."""
    print(f"Training in {run.folder}")
    events, history = EventReader(run), History()
    with tqdm(unit="step", dynamic_ncols=True) as bar:
        while True:
            try:
                # Between two workers of one run, where memory ran out, only the thread tells that it goes on.
                thread = supervisor.thread_of(run)
                ended = run.state().status.ended and not (thread and thread.is_alive())
                _show_new(events, history, bar)
                if ended:
                    break
                _show_place(run, supervisor, bar)
                time.sleep(_POLL)
            except KeyboardInterrupt:
                _interrupt(run, supervisor, bar)
    return _say_end(run)


def _interrupt(run: Run, supervisor: Supervisor, bar: tqdm[Any]) -> None:
    if run.state().status is Status.QUEUED:
        supervisor.queue.remove(run.name)
    elif run.stop_requested():
        bar.write("Cancelling ...")
        run.request_cancel()
    else:
        bar.write("Stopping after this step and saving ... (Ctrl+C once more: at once, without saving)")
        run.request_stop()


def _show_place(run: Run, supervisor: Supervisor, bar: tqdm[Any]) -> None:
    waiting = [other.name for other in supervisor.queue.runs()] if run.state().status is Status.QUEUED else []
    if run.name in waiting:
        bar.set_description_str(f"waits in the queue, place {waiting.index(run.name) + 1} of {len(waiting)}")


def _show_new(events: EventReader, history: History, bar: tqdm[Any]) -> None:
    for event in events.read_new():
        history.add(event)
        if isinstance(event, Note):
            bar.write(event.text)
    if history.records_prepared and not history.steps:
        bar.set_description_str(f"{history.records_prepared:,} rows or chunks read")
    if history.steps:
        bar.set_description_str("")
        last = history.steps[-1]
        evaluation = f", evaluation {history.evaluations[-1].loss:.3f}" if history.evaluations else ""
        bar.set_postfix_str(f"loss {last.loss:.3f}{evaluation}, {history.tokens_per_second:,.0f} tokens/s")
    bar.total = history.total_steps or None
    bar.n = history.step
    bar.refresh()


def _say_end(run: Run) -> int:
    state = run.state()
    if state.status is Status.FAILED:
        print(f"Failed: {state.cause}", file=sys.stderr)
        return 1
    if not run.has_result():
        print(f"{state.status.value.capitalize()}: {state.cause or 'nothing was saved.'}")
        return 0
    what = "LoRA" if is_adapter(run.folder) else "model"
    print(f"{state.status.value.capitalize()}: the {what} is in {run.folder}")
    if state.cause:
        print(state.cause)
    return 0


if __name__ == "__main__":
    sys.exit(main())
