"""`python -m training` has a flag for every setting and trains into the same run folder as the page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import add_base, add_dataset, make_folders
from training.__main__ import build_parser, main
from training.errors import UserError
from training.paths import PROJECT, Folders
from training.run_state import Status
from training.runs import Run
from training.settings import Settings
from training.supervisor import Supervisor


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = make_folders(tmp_path)
    add_base(folders)
    add_dataset(folders)
    return folders


def _folder_flags(folders: Folders) -> list[str]:
    return [
        f"--models-dir={folders.models}",
        f"--datasets-dir={folders.datasets}",
        f"--loras-dir={folders.loras}",
    ]


def test_every_setting_has_a_flag() -> None:
    flags = {o for action in build_parser()._actions for o in action.option_strings}
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= flags


def test_help_works_and_imports_no_torch() -> None:
    code = "import sys, training.__main__ as m; m.build_parser().format_help(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_trains_a_dataset_that_lies_elsewhere(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folders.datasets / "pairs.json"
    source.rename(tmp_path / "elsewhere.json")
    monkeypatch.chdir(tmp_path)  # the worker runs in another folder, so the name must not be relative to this one
    flags = ["--dataset=elsewhere.json", "--name=shell", "--base-model=tiny", "--epochs=1", "--batch-size=4"]
    assert main([*_folder_flags(folders), *flags, "--train-on=everything"]) == 0
    run = Run(folders.loras / "shell")
    assert run.state().status is Status.DONE
    assert run.has_result()
    assert run.settings().train_on == "everything"
    assert "Done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--learning-rate=fast"], "Learning rate"),
        (["--micro-batch-size=64"], "Micro-batch size"),
        (["--name=../x"], "Name"),
        (["--dataset=none.json"], "none.json"),
        (["--dataset", "pairs.json", "none.json"], "none.json"),
        (["--precision=2-bit"], "Load in"),
        (["--target-modules", "all-linear", "q_proj"], "Target modules"),
        (["--method=magic"], "Method"),
        (["--start-from=nobody"], "nobody"),
        (["--data-format=nonsense"], "Data format"),
        ([f"--dataset={'x' * 5000}"], "no file or folder"),
        (["--base-model=nobody"], "Base model"),
        (["--preset=Nope"], "Quick demo"),
        (["--copy-settings-from=nobody"], "nobody"),
    ],
)
def test_wrong_flags_are_a_sentence(
    folders: Folders, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    valid = ["--dataset=pairs.json", "--name=shell", "--base-model=tiny"]
    assert main([*_folder_flags(folders), *valid, *flags]) == 1
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert list(folders.loras.iterdir()) == []


def test_preset_and_copied_settings_are_the_start(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--dataset=pairs.json", "--base-model=tiny", "--epochs=1", "--batch-size=8", "--micro-batch-size=8"]
    assert main([*_folder_flags(folders), *base, "--name=first", "--preset=Knowledge"]) == 0
    assert Run(folders.loras / "first").settings().lora_rank == 64
    assert main([*_folder_flags(folders), "--copy-settings-from=first", "--name=second", "--lora-alpha=8"]) == 0
    second = Run(folders.loras / "second").settings()
    assert (second.lora_rank, second.lora_alpha, second.batch_size) == (64, 8, 8)


def test_several_files_folders_and_a_format_file(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in datasets/ keeps its name, what lies elsewhere gets its whole path."""
    (tmp_path / "more").mkdir()
    (folders.datasets / "pairs.json").rename(tmp_path / "more" / "other.json")
    add_dataset(folders)
    monkeypatch.chdir(tmp_path)
    started: list[Settings] = []

    def submit(_: Supervisor, settings: Settings) -> None:
        started.append(settings)
        raise UserError("far enough")

    monkeypatch.setattr(Supervisor, "submit", submit)
    flags = ["--dataset", "pairs.json", "more", "--data-format=mine.json", "--evaluation-file=more/other.json"]
    assert main([*_folder_flags(folders), "--name=x", "--preset=Raw text", *flags]) == 1
    (settings,) = started
    assert settings.dataset == ["pairs.json", str(tmp_path / "more")]
    assert settings.raw_text == []  # which the preset brought along
    assert settings.data_format == "mine.json"
    assert settings.evaluation_file == str(tmp_path / "more" / "other.json")


def test_name_in_use_says_which_flag(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*_folder_flags(folders), "--dataset=pairs.json", "--base-model=tiny", "--epochs=1", "--name=shell"]
    assert main(flags) == 0
    assert main(flags) == 1
    assert "a LoRA called 'shell' already" in capsys.readouterr().err
    assert main([*flags, "--if-exists=new version"]) == 0
    assert Run(folders.loras / "shell-2").has_result()
