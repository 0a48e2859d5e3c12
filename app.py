"""Opens Graft's page: reads the arguments, builds the page and serves it on this computer."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import UserError
from training.paths import Folders

if TYPE_CHECKING:
    from training.supervisor import Supervisor

PASSWORD = "GRAFT_PASSWORD"


def build_parser() -> argparse.ArgumentParser:
    """The command line; --help works before anything is installed, so nothing but the standard library is needed."""
    parser = argparse.ArgumentParser(
        prog="start.py",
        description="Graft: train LoRA adapters in the browser.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; 0.0.0.0 lets other computers in")
    parser.add_argument("--port", type=int, default=7860, help="port to serve on")
    parser.add_argument("--share", action="store_true", help="also open a public link through Gradio's servers")
    parser.add_argument(
        "--password",
        default=argparse.SUPPRESS,  # the help says in words what happens without one
        help=f"what the page asks for before it opens; {PASSWORD} in the environment does the same and is not seen in "
        "the list of programs (default: none while only this computer is let in, else one is made and printed)",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser window")
    parser.add_argument(
        "--stop-runs-on-exit",
        action="store_true",
        help="when the page ends, trainings save and end too; else they go on, and the next start shows them",
    )
    parser.add_argument("--models-dir", type=Path, default=Folders.models, help="folder of the base models")
    parser.add_argument("--datasets-dir", type=Path, default=Folders.datasets, help="folder of the data files")
    parser.add_argument("--loras-dir", type=Path, default=Folders.loras, help="folder the LoRAs are saved in")
    return parser


def main() -> int:
    """Serve the page until Ctrl+C; the exit code is 1 when it cannot be served."""
    arguments = build_parser().parse_args()
    # Taken out, because trainings get the environment of the page, and with it the code that a model brings.
    password: str | None = vars(arguments).get("password", os.environ.pop(PASSWORD, None))
    if password is not None and not password.strip():
        print(f"The password is empty: give one after --password or in {PASSWORD}, or leave both out.", file=sys.stderr)
        return 1
    if problem := port_problem(arguments.host, arguments.port):
        print(problem, file=sys.stderr)
        return 1
    # Nothing is sent to anybody: these are read when the libraries are imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

    from training.supervisor import Supervisor
    from ui.access import is_loopback, launch_door, warning
    from ui.page import build_page, launch_options

    folders = Folders(
        models=arguments.models_dir.resolve(),
        datasets=arguments.datasets_dir.resolve(),
        loras=arguments.loras_dir.resolve(),
    )
    try:
        folders.make()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.share or not is_loopback(arguments.host):
        made = "" if password else secrets.token_urlsafe(16)
        password = password or made
        print(warning(made, is_public=arguments.share), file=sys.stderr, flush=True)
    supervisor = Supervisor(folders)
    page = build_page(folders, supervisor)
    supervisor.keep_looking()
    # Asked to end by the system, or by a terminal that is closed, it ends as after Ctrl+C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=arguments.share,
            inbrowser=not arguments.no_browser and has_screen(),
            **launch_door(password, arguments.port),
            **launch_options(),
        )
    except KeyboardInterrupt:
        pass  # before or while Gradio waits for one itself
    finally:
        _end(supervisor, stop_runs=arguments.stop_runs_on_exit)
    return 0


def _end(supervisor: Supervisor, *, stop_runs: bool) -> None:
    """Say what becomes of the runs, and wait for those that are to save first."""
    names = ", ".join(f"'{run.name}'" for run in supervisor.followed())
    if names and stop_runs:
        print(f"Stopping {names} and saving ... (Ctrl+C once more leaves them to it)", flush=True)
    elif names:
        print(f"{names} goes on training; start Graft again to see it, or to stop it.", flush=True)
    try:
        supervisor.close(stop_runs=stop_runs)
    except KeyboardInterrupt:
        print("They are asked to stop, and do so by themselves.", flush=True)


def port_problem(host: str, port: int) -> str:
    """Why the page cannot be served there, in a sentence; empty when it can."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the server does it: a port that was closed a moment ago is free.
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        return (
            f"The page cannot be opened at {host}:{port} ({error}). If Graft runs already, use that page; "
            f"otherwise choose another port: python3 start.py --port {port % 65535 + 1}"
        )
    return ""


def has_screen() -> bool:
    """Whether a browser window can be opened here; over SSH and in a container it cannot."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
