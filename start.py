"""Sets up Graft the first time, then starts it; `python3 start.py test` runs every test instead.

Standard library only. The syntax stays that of Python 3.6, so that an old Python gets a sentence and not a traceback.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

OLDEST_PYTHON = (3, 11)  # that of transformers
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG = VENV / "install.log"
UNFINISHED = VENV / "graft-unfinished"  # there while files are put in place: where it is left, they cannot be trusted
LOCK = ROOT / ".venv.lock"

RUN = "requirements.txt"
DEV = "requirements-dev.txt"
MODULES = {RUN: "torch transformers peft datasets accelerate safetensors gradio plotly pydantic psutil".split()}
MODULES[DEV] = MODULES[RUN] + ["pytest", "hypothesis", "playwright"]

HELP = """\
start.py sets up Graft the first time and then runs app.py:

  python3 start.py [options]              open the page (the options are those of app.py, below)
  python3 start.py test [pytest options]  run every test, for example: python3 start.py test -k settings
"""

# What pip and the system print, and what it means to the reader; the first that fits is told.
NO_SPACE = ("no space left on device", "[errno 28]", "[winerror 112]", "disk quota exceeded")
NO_RIGHT = ("permission denied", "read-only file system", "[winerror 5]", "[errno 13]", "[errno 30]")
NO_NETWORK = (
    "failed to establish a new connection",
    "newconnectionerror",
    "nameresolutionerror",
    "connection refused",
    "connection aborted",
    "connection broken",
    "connection reset",
    "timed out",
    "timeouterror",
    "max retries exceeded",
    "proxyerror",
    "sslerror",
    "temporary failure in name resolution",
)
NO_BUILD = "no matching distribution found for "


class SetupError(Exception):
    """Something the user can put right; the text says how."""


def check_python() -> None:
    """Refuses a Python that is too old, and names a newer one if this computer has it."""
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return
    found = [name for name in ("python3.{}".format(minor) for minor in (13, 12, 11)) if shutil.which(name)]
    what = "run: {} start.py".format(found[0]) if found else "install one from https://www.python.org/downloads/"
    version = "{}.{}".format(*sys.version_info[:2])
    text = "Graft needs Python {}.{} or newer, and this is Python {}: {}"
    raise SetupError(text.format(*OLDEST_PYTHON, version, what))


def check_venv_module() -> None:
    """Refuses a Python that came without its venv module, as on Debian and Ubuntu."""
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        how = "sudo apt install python{}.{}-venv".format(*sys.version_info[:2])
        raise SetupError("This Python cannot make virtual environments: on Debian or Ubuntu, run: " + how)


def explain(output: str) -> str:
    """One sentence for the reader about the failure that `output` (of pip, venv or the system) describes."""
    lower = output.lower()
    if any(sign in lower for sign in NO_SPACE):
        free = ["{:.1f} GB free in {}".format(_free_gb(place), place) for place in (str(ROOT), tempfile.gettempdir())]
        return (
            "The disk is full ({}): free at least 10 GB and run the same command again; if it is the temporary folder "
            "that is small, point the variable TMPDIR to a folder on a bigger disk.".format(", ".join(free))
        )
    if any(sign in lower for sign in NO_RIGHT):
        return "The folder {} cannot be written to: move Graft to a folder of your own and run it there.".format(ROOT)
    # pip's warnings about the network count only if nothing was found in the end; else a later try went well.
    nothing = "(from versions: none)" in lower
    counted = [line for line in lower.splitlines() if nothing or not line.startswith("warning:")]
    if any(sign in line for sign in NO_NETWORK for line in counted):
        return (
            "The packages could not be downloaded because the package index cannot be reached: check the connection "
            "(behind a proxy, set the variable HTTPS_PROXY) and run the same command again."
        )
    if NO_BUILD in lower:
        start = lower.index(NO_BUILD) + len(NO_BUILD)
        package = output[start:].split()[0]
        here = "{}.{} on {}".format(sys.version_info[0], sys.version_info[1], sys.platform)
        return (
            "No {} was found for Python {}: check the connection, and if it is fine, install a 64-bit Python 3.12 and "
            "start with that one.".format(package, here)
        )
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()] or ["no reason was given"]
    return "The setup failed ({}): delete the folder {} and run the same command again.".format(errors[-1], VENV)


def _free_gb(place: str) -> float:
    return shutil.disk_usage(place).free / 1e9


@contextlib.contextmanager
def setup_lock() -> Iterator[None]:
    """Keeps two starts from setting up the same folder at once; the system drops the lock when the process ends."""
    with LOCK.open("a") as handle:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            text = "Another start.py is setting up this folder: wait until it is done and run this again."
            raise SetupError(text) from None
        yield


def venv_fault() -> str:
    """Why the virtual environment has to be made (anew), or "" if it need not be."""
    if not VENV_PYTHON.exists():
        return "it is not complete" if VENV.exists() else "there is none"
    if UNFINISHED.exists():
        return "the last setup was interrupted"
    if not (VENV / "pyvenv.cfg").exists():
        return "it is not complete"
    settings = (VENV / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    fields = dict(line.replace(" ", "").split("=", 1) for line in settings.splitlines() if "=" in line)
    version = fields.get("version_info") or fields.get("version") or "unknown"  # virtualenv writes the former
    if version.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
        return "its Python is {} and this one is {}.{}".format(version, *sys.version_info[:2])
    return ""


def fingerprint(name: str) -> str:
    """Changes when the requirements or the Python do, and then they are installed again."""
    parts = [str(sys.version_info[:2])]
    parts += [(ROOT / part).read_text(encoding="utf-8") for part in ([RUN] if name == RUN else [RUN, DEV])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def stamp(name: str) -> Path:
    """Holds the fingerprint of the requirements file `name` as it was last installed without a fault."""
    return VENV / ("graft-" + name)


def is_set_up(name: str) -> bool:
    """The cheap check of every start: nothing is imported."""
    if not stamp(name).exists() or stamp(name).read_text(encoding="utf-8") != fingerprint(name):
        return False
    return not missing_modules(name)


def missing_modules(name: str) -> List[str]:
    """The modules that the virtual environment cannot find; refuses one that the project's own folder hides."""
    probe = (
        "import importlib.util, json, sys; specs = {name: importlib.util.find_spec(name) for name in sys.argv[1:]}; "
        "print(json.dumps({name: spec.origin if spec else None for name, spec in specs.items()}))"
    )
    done = run_quietly([str(VENV_PYTHON), "-c", probe] + MODULES[name])
    if done.returncode:
        return MODULES[name]
    origins: Dict[str, Optional[str]] = json.loads(done.stdout.splitlines()[-1])
    for module, origin in origins.items():
        if origin and ROOT in Path(origin).parents and VENV not in Path(origin).parents:
            raise SetupError("The file {} hides the Python package {}: delete or rename it.".format(origin, module))
    return [module for module, origin in origins.items() if not origin]


def run_quietly(command: List[str]) -> "subprocess.CompletedProcess[str]":
    """Runs a short command in the project's folder; stdout and stderr come back together."""
    return subprocess.run(
        command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )


def make_venv() -> None:
    """Makes an empty virtual environment with pip in place of whatever is there."""
    check_venv_module()
    if Path(sys.prefix).resolve() == VENV:
        raise SetupError("The virtual environment must be made anew: type deactivate, then run: python3 start.py")
    done = run_quietly([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)])
    if not done.returncode:
        UNFINISHED.touch()
        done = run_quietly([str(VENV_PYTHON), "-Im", "ensurepip", "--upgrade", "--default-pip"])
    if done.returncode:
        raise SetupError(explain(done.stdout))
    UNFINISHED.unlink()


def install(name: str) -> None:
    """Installs the requirements file `name`; every word of pip goes to the log, its progress to the screen."""
    command = [str(VENV_PYTHON), "-m", "pip", "install", "-r", name, "--disable-pip-version-check"]
    environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    pipe: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    lines: List[str] = []
    with LOG.open("w", encoding="utf-8") as log:
        with subprocess.Popen(command, cwd=str(ROOT), env=environment, encoding="utf-8", **pipe) as pip:
            assert pip.stdout is not None
            for line in pip.stdout:
                log.write(line)
                log.flush()
                lines.append(line)
                if line.startswith("Installing collected packages"):
                    UNFINISHED.touch()
                if progress(line):
                    show(progress(line))
    if pip.returncode:
        raise SetupError(explain("".join(lines)) + "\nThe whole output of pip is in " + str(LOG))
    if UNFINISHED.exists():
        UNFINISHED.unlink()


def progress(line: str) -> str:
    """A few plain words for a line of pip's output, or "" if it is of no interest."""
    words = line.split()
    if line.startswith("Installing collected packages:"):
        return "putting packages in place ({}), which takes a while".format(len(words) - 3)
    if words[:1] == ["Downloading"] and ".metadata" not in line:
        package = words[1].split("/")[-1]
        return "downloading {} {}".format("-".join(package.split("-")[:2]), " ".join(words[2:]))
    if words[:1] == ["Collecting"]:
        return "collecting " + words[1]
    return ""


def show(text: str) -> None:
    """Shows progress on one line that is written over; where there is no terminal, the longer waits only."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + ("  " + text).ljust(width)[:width], end="", flush=True)
    elif not text.startswith("collecting"):
        print("  " + text, flush=True)


def check_imports(name: str) -> None:
    """The thorough check after an install: what Graft needs is there, can be imported and is the real thing."""
    missing = missing_modules(name)
    if missing:
        raise SetupError(explain("error: pip installed everything, yet these are missing: " + ", ".join(missing)))
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; import datasets; "
    done = run_quietly([str(VENV_PYTHON), "-c", code + "datasets.load_dataset"] + MODULES[name])
    if done.returncode:
        LOG.write_text(done.stdout, encoding="utf-8")
        raise SetupError(explain(done.stdout) + "\nThe whole error is in " + str(LOG))


def set_up(name: str) -> None:
    """Makes the virtual environment fit the requirements file `name`; quick when it already does."""
    if not venv_fault() and is_set_up(name):
        return
    with setup_lock():
        fault = venv_fault()  # once more: another start may just have finished
        print(
            "Setting up Graft; the first time, this takes some minutes and downloads up to several GB ...", flush=True
        )
        if not fault and run_quietly([str(VENV_PYTHON), "-m", "pip", "--version"]).returncode:
            fault = "it has no working pip"
        if fault:
            if VENV.exists():
                print("  making the folder .venv anew: " + fault, flush=True)
            make_venv()
        install(name)
        show("checking what was installed")
        check_imports(name)
        for part in [RUN] if name == RUN else [RUN, DEV]:
            stamp(part).write_text(fingerprint(part), encoding="utf-8")
        show("ready")
        print(flush=True)


def run(command: List[str]) -> int:
    """Runs what the user came for, in the project's folder, and gives back its exit code."""
    # The terminal sends Ctrl+C to the child too, which closes in its own time. Catching KeyboardInterrupt around wait()
    # instead can lose the exit code, when the child ends at that very moment.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    process = subprocess.Popen(command, cwd=str(ROOT))
    # Whoever ends this process means the one that does the work.
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    code = process.wait()
    return code if code >= 0 else 128 - code


def main(arguments: List[str]) -> int:
    """Sets up what is missing and runs app.py or the tests."""
    try:
        check_python()
        if arguments[:1] == ["test"]:
            set_up(DEV)
            return run([str(VENV_PYTHON), "-m", "pytest"] + arguments[1:])
        if "-h" in arguments or "--help" in arguments:
            print(HELP, flush=True)
            return run([sys.executable, "app.py", "--help"])  # needs nothing but the standard library
        set_up(RUN)
        return run([str(VENV_PYTHON), "app.py"] + arguments)
    except KeyboardInterrupt:
        print("\nInterrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    except (SetupError, OSError) as error:
        sentence = str(error) if isinstance(error, SetupError) else explain("error: {}".format(error))
        print("\n" + sentence, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
