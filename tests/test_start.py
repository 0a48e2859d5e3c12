"""start.py with a pretended pip: what it installs and when, what it hands on, and what it says when something is wrong.

The file is copied to an empty folder, so that nothing of the real virtual environment is touched. A `pip.py` in that
folder is found before the real pip and does as it is told.
"""

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REAL = Path(__file__).parents[1] / "start.py"

FAKE_PIP = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
if "--version" in sys.argv:
    sys.exit(0)
with open(here / "pip-calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + chr(10))
told = json.loads((here / "pip-told").read_text())
print(told["output"], flush=True)
sys.exit(told["code"])
"""
FAKE_APP = "import sys; print('app', sys.argv[1:]); sys.exit(7)"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module start.py in a folder of its own, beside a pretended pip and app.py."""
    shutil.copy(REAL, tmp_path)
    (tmp_path / "pip.py").write_text(FAKE_PIP)
    (tmp_path / "app.py").write_text(FAKE_APP)
    (tmp_path / "pytest.py").write_text("import sys; print('tests', sys.argv[1:]); sys.exit(3)")
    (tmp_path / "requirements.txt").write_text("torch==1\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\npytest\n")
    module = load(tmp_path)
    # The Python that runs these tests plays the one of the virtual environment.
    monkeypatch.setattr(module, "VENV_PYTHON", Path(sys.executable))
    monkeypatch.setattr(module, "MODULES", {module.RUN: ["json"], module.DEV: ["json", "ast"]})
    monkeypatch.setattr(module, "make_venv", lambda: pretend_venv(module))
    monkeypatch.setattr(module, "check_imports", lambda name: None)
    tell_pip(module)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield module
    for number, handler in before.items():
        signal.signal(number, handler)


def load(folder: Path) -> Any:
    """The start.py of `folder` as a new module."""
    spec = importlib.util.spec_from_file_location("start_under_test", folder / "start.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretend_venv(start: Any) -> None:
    shutil.rmtree(start.VENV, ignore_errors=True)
    start.VENV.mkdir()
    (start.VENV / "pyvenv.cfg").write_text("version = {}.{}.1\n".format(*sys.version_info[:2]))


def tell_pip(start: Any, output: str = "", code: int = 0) -> None:
    (start.ROOT / "pip-told").write_text(json.dumps({"output": output, "code": code}))


def pip_calls(start: Any) -> list[str]:
    """The requirements files that pip was asked for, in order."""
    path = start.ROOT / "pip-calls"
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert all(call[:2] == ["install", "-r"] and call[3:] == ["--disable-pip-version-check"] for call in calls)
    return [call[2] for call in calls]


def failure(start: Any, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What start.py says when it gives up with these arguments."""
    assert start.main(list(arguments)) == 1
    said = capfd.readouterr().err.strip()
    assert "Traceback" not in said
    return said


def test_syntax_is_that_of_old_python() -> None:
    ast.parse(REAL.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_standard_library_only() -> None:
    tree = ast.walk(ast.parse(REAL.read_text(encoding="utf-8")))
    names = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


# When it installs


def test_installs_once_and_hands_on_options_and_exit_code(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--port", "7861"]) == 7
    first = capfd.readouterr().out
    assert "Setting up Graft" in first and "app ['--port', '7861']" in first
    assert start.main([]) == 7
    second = capfd.readouterr().out
    assert "Setting up" not in second and "app []" in second
    assert pip_calls(start) == ["requirements.txt"]


def test_installs_again_when_requirements_change(start: Any) -> None:
    start.main([])
    (start.ROOT / "requirements.txt").write_text("torch==2\n")
    start.main([])
    start.main([])
    assert pip_calls(start) == ["requirements.txt"] * 2


def test_installs_again_when_a_package_is_gone(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start.main([])
    monkeypatch.setitem(start.MODULES, start.RUN, ["json", "no_such_module"])
    start.main([])
    assert pip_calls(start) == ["requirements.txt"] * 2


def test_installs_again_after_a_failure(start: Any) -> None:
    tell_pip(start, "ERROR: something", code=1)
    assert start.main([]) == 1
    tell_pip(start)
    assert start.main([]) == 7
    assert pip_calls(start) == ["requirements.txt"] * 2


@pytest.mark.parametrize("cause", ["interrupted", "other python", "no settings"])
def test_makes_a_doubtful_venv_anew(start: Any, capfd: pytest.CaptureFixture[str], cause: str) -> None:
    start.main([])
    witness = start.VENV / "witness"
    witness.touch()
    expected = {
        "interrupted": "the last setup was interrupted",
        "other python": "its Python is 3.9.2 and this one is {}.{}".format(*sys.version_info[:2]),
        "no settings": "it is not complete",
    }
    if cause == "interrupted":
        start.UNFINISHED.touch()
    elif cause == "other python":
        (start.VENV / "pyvenv.cfg").write_text("version = 3.9.2\n")
    else:
        (start.VENV / "pyvenv.cfg").unlink()
    capfd.readouterr()
    assert start.main([]) == 7
    assert expected[cause] in capfd.readouterr().out
    assert not witness.exists()
    assert pip_calls(start) == ["requirements.txt"] * 2


def test_pip_that_dies_midway_leaves_its_mark(start: Any) -> None:
    tell_pip(start, "Installing collected packages: a, b", code=1)
    start.main([])
    assert start.UNFINISHED.exists()
    tell_pip(start, "Installing collected packages: a, b")
    start.main([])
    assert not start.UNFINISHED.exists()


def test_missing_pip_makes_the_venv_anew(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pretend_venv(start)
    (start.ROOT / "pip.py").write_text("raise ImportError")
    start.main([])
    assert "it has no working pip" in capfd.readouterr().out


def test_test_mode_installs_more_and_hands_on_to_pytest(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert start.main(["test", "-k", "settings"]) == 3
    assert "tests ['-k', 'settings']" in capfd.readouterr().out
    assert start.main(["test"]) == 3
    assert start.main([]) == 7  # requirements-dev.txt brought all that the page needs
    assert pip_calls(start) == ["requirements-dev.txt"]


def test_whole_pip_output_is_kept_and_progress_is_short(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    output = (
        "Collecting torch==2.13.0 (from -r requirements.txt (line 2))\n"
        "  Downloading https://example.org/torch-2.13.0-cp311-cp311-linux_x86_64.whl.metadata (30 kB)\n"
        "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (915.2 MB)\n"
        "Installing collected packages: sympy, torch"
    )
    tell_pip(start, output)
    start.main([])
    assert start.LOG.read_text(encoding="utf-8").strip() == output
    said = capfd.readouterr().out
    assert "  downloading torch-2.13.0 (915.2 MB)\n  putting packages in place (2)" in said
    assert "metadata" not in said and "30 kB" not in said


# Help


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_needs_no_setup(start: Any, capfd: pytest.CaptureFixture[str], option: str) -> None:
    assert start.main([option]) == 7
    said = capfd.readouterr().out
    assert "start.py test [pytest options]" in said
    assert said.endswith("app ['--help']\n")
    assert not start.VENV.exists() and not pip_calls(start)


# What it says


@pytest.mark.parametrize(
    ("newer", "advice"),
    [("python3.12", "run: python3.12 start.py"), ("none", "install one from https://www.python.org/downloads/")],
)
def test_old_python(
    start: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, newer: str, advice: str
) -> None:
    monkeypatch.setattr(start.sys, "version_info", (3, 8, 10, "final", 0))
    monkeypatch.setattr(start.shutil, "which", lambda name: name if name == newer else None)
    for arguments in ([], ["test"], ["--help"]):
        said = failure(start, capfd, *arguments)
        assert said == "Graft needs Python 3.11 or newer, and this is Python 3.8: " + advice


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_python_without_venv(start: Any, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(start.SetupError, match=r"on Debian or Ubuntu, run: sudo apt install python3\.\d+-venv"):
        start.check_venv_module()


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError: Failed to establish a "
            "new connection: [Errno 111] Connection refused'\n"
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "the package index cannot be reached: check the connection",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "free at least 10 GB and run the same command again",
        ),
        ("OSError: [Errno 122] Disk quota exceeded", "The disk is full"),
        ("ERROR: [Errno 13] Permission denied: '/x/.venv'", "cannot be written to: move Graft to a folder of your own"),
        ("ERROR: No matching distribution found for torch==2.13.0", "No torch==2.13.0 was found for Python 3."),
        ("ERROR: ResolutionImpossible: see the docs", "(ERROR: ResolutionImpossible: see the docs): delete the folder"),
    ],
)
def test_pip_fails(start: Any, capfd: pytest.CaptureFixture[str], output: str, sentence: str) -> None:
    tell_pip(start, output, code=1)
    said = failure(start, capfd)
    assert sentence in said
    assert said.endswith(f"The whole output of pip is in {start.LOG}")
    assert len(said.splitlines()) == 2


def test_network_trouble_that_passed_is_not_blamed(start: Any) -> None:
    said = start.explain("WARNING: Retrying after connection broken by X\nERROR: ResolutionImpossible: help")
    assert "ResolutionImpossible" in said


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied"), "cannot be written to"),
        (OSError(30, "Read-only file system"), "cannot be written to"),
        (OSError(28, "No space left on device"), "The disk is full"),
        (OSError(8, "Exec format error"), "The setup failed (error: [Errno 8] Exec format error): delete the folder"),
    ],
)
def test_system_errors_become_sentences(
    start: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: OSError, sentence: str
) -> None:
    def make_venv() -> None:
        raise error

    monkeypatch.setattr(start, "make_venv", make_venv)
    assert sentence in failure(start, capfd)


def test_project_file_that_hides_a_package(
    start: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(start.MODULES, start.RUN, ["json", "datasets"])
    start.main([])
    capfd.readouterr()
    (start.ROOT / "datasets").mkdir()
    shadow = start.ROOT / "datasets" / "__init__.py"
    shadow.touch()
    assert failure(start, capfd) == f"The file {shadow} hides the Python package datasets: delete or rename it."


def test_project_folder_of_data_hides_nothing(start: Any) -> None:
    (start.ROOT / "datasets").mkdir()
    start.MODULES[start.RUN] = ["datasets"]
    assert start.missing_modules(start.RUN) == []


def test_packages_that_cannot_be_imported(tmp_path: Path, start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    fresh = load(tmp_path)
    fresh.VENV_PYTHON = Path(sys.executable)
    fresh.make_venv = lambda: pretend_venv(fresh)
    (tmp_path / "broken_module.py").write_text("raise ImportError('libcuda is not there')")
    fresh.missing_modules = lambda name: []
    fresh.MODULES = {fresh.RUN: ["broken_module"]}
    said = failure(fresh, capfd)
    assert "The setup failed (ImportError: libcuda is not there): delete the folder" in said
    assert "Traceback" in fresh.LOG.read_text(encoding="utf-8")
    assert not fresh.stamp(fresh.RUN).exists()


def test_venv_that_cannot_be_made(tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load(tmp_path)
    done = subprocess.CompletedProcess([], 1, "Error: [Errno 28] No space left on device")
    monkeypatch.setattr(fresh, "run_quietly", lambda command: done)
    with pytest.raises(fresh.SetupError, match="The disk is full"):
        fresh.make_venv()


def test_venv_is_not_taken_away_from_under_its_own_python(
    tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = load(tmp_path)
    monkeypatch.setattr(fresh.sys, "prefix", str(fresh.VENV))
    with pytest.raises(fresh.SetupError, match="type deactivate"):
        fresh.make_venv()


def test_two_setups_at_once(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with start.setup_lock():
        assert "Another start.py is setting up this folder" in failure(start, capfd)
    assert start.main([]) == 7


# Ctrl+C and ends


def test_ctrl_c_during_setup(start: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(start, "install", interrupted)
        assert start.main([]) == 130
    assert capfd.readouterr().err.strip() == "Interrupted; run the same command again to go on."
    assert start.main([]) == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")
def test_child_ended_by_a_signal(start: Any) -> None:
    assert start.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]) == 143


SLOW_APP = """
import sys, time
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.1)
    sys.exit(5)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")
@pytest.mark.parametrize(
    ("number", "everyone", "code"),
    [(signal.SIGINT, True, 5), (signal.SIGTERM, False, 128 + signal.SIGTERM)],
    ids=["Ctrl+C goes to both and the page may close", "an end goes to start.py, which hands it on"],
)
def test_signals_reach_the_page(start: Any, number: int, everyone: bool, code: int) -> None:
    (start.ROOT / "app.py").write_text(SLOW_APP)
    command = [sys.executable, "-c", "import start, sys; sys.exit(start.run([sys.executable, 'app.py']))"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=start.ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "up\n"
        if everyone:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(10) == code
        assert "Traceback" not in process.stderr.read()
