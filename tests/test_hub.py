"""Downloads from a stand-in of the Hub: whole or not offered, resumed, stopped, and every trouble a sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub_stand_in import STRANGER, TOKEN, Repo, StandIn, folder_repo, running_hub
from tests.server import free_port
from tests.tiny import make_folders, make_model, make_tokenizer
from training import hub
from training.base_models import about_base_model, locate_base_model
from training.downloads import Download, DownloadProgress, begin
from training.errors import UserError
from training.hub import DownloadStopped, Report, Wanted, download
from training.paths import Folders, list_models

MODEL, SHARDED = "org/starter", "org/sharded"
SECRET = "hf_secretSecretSecret"
SECONDS = 30.0  # that a thread is waited for; it takes a fraction of one
# More than the system's buffers of a connection take, so that a stand-in that waits is really waited for.
BEGINNING = 1 << 20


def ignore(done: int, total: int, file: str) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    folder = tmp_path_factory.mktemp("sharded")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)
    repo = folder_repo(folder)
    # What lies beside the model and is not to be fetched.
    extras = ("pytorch_model.bin", "consolidated.safetensors", "code.py", "README.md", "onnx/config.json", "x.gguf")
    return Repo(repo.files | dict.fromkeys(extras, b"much" * 1000))


@pytest.fixture
def stand_in(sharded: Repo) -> Iterator[StandIn]:
    with running_hub({MODEL: folder_repo(Folders().models / "starter"), SHARDED: sharded}) as stand_in:
        yield stand_in


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Folders of the test's own, on a computer on which nobody is logged in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "nobody"))
    monkeypatch.setattr(hub, "_WAIT", 0.0)
    return replace(make_folders(tmp_path), hub_cache=tmp_path / "hub")


@pytest.fixture
def wanted(stand_in: StandIn, folders: Folders) -> Callable[..., Wanted]:
    def make(repo_id: str = MODEL, **more: Any) -> Wanted:
        return Wanted(repo_id, **{"endpoint": stand_in.url, "cache_dir": folders.hub_cache} | more)

    return make


Make = Callable[..., Wanted]


def _ended(download: Download) -> DownloadProgress:
    download.join(SECONDS)
    assert not download.is_alive()
    return download.progress()


# What comes


def test_download_is_whole_counted_and_offered(stand_in: StandIn, folders: Folders, wanted: Make) -> None:
    seen: list[tuple[int, int, str]] = []
    assert list_models(folders) == []
    path = Path(download(wanted(), lambda *step: seen.append(step)))
    for name, content in stand_in.repos[MODEL].files.items():
        assert (path / name).read_bytes() == content, name
    size = sum(map(len, stand_in.repos[MODEL].files.values()))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1] == (size, size, "model.safetensors") and {total for _, total, _ in seen} == {size}
    assert len({done for done, _, _ in seen}) > 5, "the large file must be reported as it comes"
    assert list_models(folders) == [MODEL]
    assert locate_base_model(folders, MODEL) == str(path.resolve())
    assert about_base_model(folders, MODEL).startswith("Llama, 5.2 million parameters")


def test_second_download_fetches_nothing(stand_in: StandIn, wanted: Make) -> None:
    first = download(wanted(), ignore)
    stand_in.asked.clear()
    assert download(wanted(), ignore) == first
    assert stand_in.weights_asked() == []


def test_shards_and_nothing_beside_the_model(stand_in: StandIn, wanted: Make) -> None:
    path = Path(download(wanted(SHARDED), ignore))
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    assert len(shards) > 2 and all(name.startswith("model-") for name in shards)
    names = {file.name for file in path.rglob("*")}
    assert not names & {"pytorch_model.bin", "consolidated.safetensors", "code.py", "README.md", "x.gguf", "onnx"}
    loaded = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)
    assert AutoTokenizer.from_pretrained(path)("an")["input_ids"]
    tensors = {name: tensor for shard in shards for name, tensor in load_file(path / shard).items()}
    assert all((tensors[name] == value).all() for name, value in loaded.state_dict().items() if name in tensors)


def test_code_comes_only_when_it_may_run(stand_in: StandIn, wanted: Make) -> None:
    own = json.loads(stand_in.repos[MODEL].files["config.json"])
    own |= {"model_type": "unheard-of", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    stand_in.repos[MODEL].files |= {"config.json": json.dumps(own).encode(), "code.py": b"raise SystemExit"}
    with pytest.raises(UserError, match="Run the model's own code"):
        download(wanted(), ignore)
    assert stand_in.weights_asked() == []
    assert (Path(download(wanted(with_code=True), ignore)) / "code.py").is_file()


# Cut connections, and stopping


def test_cut_connection_goes_on_where_it_broke(stand_in: StandIn, wanted: Make) -> None:
    stand_in.cuts = [3_000_000, 2_000_000]
    path = Path(download(wanted(), ignore))
    asked = stand_in.weights_asked()
    size = len(stand_in.repos[MODEL].files["model.safetensors"])
    assert [one.range for one in asked] == ["", "bytes=3000000-", "bytes=5000000-"]
    assert sum(one.sent for one in asked) == size, "no byte came twice"
    assert (path / "model.safetensors").read_bytes() == stand_in.repos[MODEL].files["model.safetensors"]


def test_connection_that_stays_cut_is_told_and_goes_on_later(stand_in: StandIn, folders: Folders, wanted: Make) -> None:
    stand_in.cuts = [4_000_000] + [0] * hub._TRIES
    with pytest.raises(UserError, match=r"broke off: .* what is there is kept, and Download goes on from it\.$"):
        download(wanted(), ignore)
    assert list_models(folders) == [] and locate_base_model(folders, MODEL) == MODEL, "half a model is not offered"
    stand_in.asked.clear()
    seen: list[int] = []
    download(wanted(), lambda done, total, file: seen.append(done) if file.endswith(".safetensors") else None)
    (asked,) = stand_in.weights_asked()
    assert asked.range == "bytes=4000000-" and list_models(folders) == [MODEL]
    assert seen[0] > 4_000_000, "what was there is counted from the start"


def test_trouble_of_the_hub_that_passes(stand_in: StandIn, wanted: Make) -> None:
    stand_in.broken = 2
    download(wanted(), ignore)
    stand_in.broken = 1000
    with pytest.raises(UserError, match=r"trouble of its own \(error 503\)"):
        download(wanted(SHARDED), ignore)


def test_cancel_and_go_on(stand_in: StandIn, folders: Folders, wanted: Make) -> None:
    stand_in.hold_after = BEGINNING
    started = begin(wanted())
    assert stand_in.waiting.wait(SECONDS)
    started.cancel()
    stand_in.go_on.set()
    end = _ended(started)
    assert end.state == "cancelled" and "is kept" in end.message and list_models(folders) == []
    stand_in.asked.clear()
    end = _ended(begin(wanted()))
    assert end.state == "done" and end.done_bytes == end.total_bytes > BEGINNING
    (asked,) = stand_in.weights_asked()
    assert int(asked.range.removeprefix("bytes=").rstrip("-")) > 0
    assert list_models(folders) == [MODEL]


def test_progress_while_it_runs(stand_in: StandIn, folders: Folders, wanted: Make) -> None:
    stand_in.hold_after = BEGINNING
    started = begin(wanted())
    assert stand_in.waiting.wait(SECONDS)
    during = started.progress()
    assert during.state == "running" and during.message == "" and started.running
    assert during.total_bytes == sum(map(len, stand_in.repos[MODEL].files.values()))
    assert list_models(folders) == []
    stand_in.go_on.set()
    end = _ended(started)
    assert (end.state, end.message) == ("done", f"'{MODEL}' is on this computer now.") and not started.running
    assert end.speed > 0


def test_stop_before_the_first_byte(stand_in: StandIn, wanted: Make) -> None:
    with pytest.raises(DownloadStopped):
        download(wanted(), ignore, lambda: True)
    assert stand_in.weights_asked() == []


def test_bytes_of_an_earlier_try_that_are_not_the_file(stand_in: StandIn, folders: Folders, wanted: Make) -> None:
    content = stand_in.repos[MODEL].files["model.safetensors"]
    assert folders.hub_cache
    part = folders.hub_cache / "models--org--starter" / "blobs" / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 5000)
    with pytest.raises(UserError, match="has not arrived as it is on the Hub: press Download again"):
        download(wanted(), ignore)
    assert list_models(folders) == []
    download(wanted(), ignore)
    assert list_models(folders) == [MODEL]


# Tokens


def test_gated_model(stand_in: StandIn, folders: Folders, wanted: Make) -> None:
    stand_in.repos[MODEL].gated = True
    with pytest.raises(UserError, match=r"'org/starter' is gated: accept its terms at huggingface\.co/org/starter"):
        download(wanted(), ignore)
    with pytest.raises(UserError, match="The Hub refuses the token"):
        download(wanted(token=SECRET), ignore)
    with pytest.raises(UserError, match="The token may not read 'org/starter', which is gated: accept its terms"):
        download(wanted(token=STRANGER), ignore)
    assert stand_in.weights_asked() == [] and list_models(folders) == []
    download(wanted(token=TOKEN), ignore)
    assert list_models(folders) == [MODEL]
    assert all(one.authorization == f"Bearer {TOKEN}" for one in stand_in.weights_asked())


def test_stored_login_is_used(stand_in: StandIn, wanted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.repos[MODEL].gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(wanted(), ignore)


@pytest.mark.parametrize("token", [TOKEN, SECRET, f"{SECRET} and more", f"{SECRET}\n", f"{SECRET}\u00e9"])
def test_token_is_written_nowhere(
    stand_in: StandIn,
    folders: Folders,
    wanted: Make,
    token: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    stand_in.repos[MODEL].gated = True
    stand_in.broken = 1
    asked = wanted(token=token)
    started = begin(asked)
    end = _ended(started)
    assert end.state == ("done" if token == TOKEN else "failed")
    said = "".join([str(end), repr(asked), str(started), caplog.text, *capfd.readouterr()])
    assert token[:8] not in said
    assert all(token[:8].encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


# Troubles


@pytest.mark.parametrize("repo_id", ["", "one-word", "../up/down", "a/b/c", "org/..", "org/a--b", "-x/y", "org/name?"])
def test_no_name_of_a_model(wanted: Make, repo_id: str, stand_in: StandIn) -> None:
    with pytest.raises(UserError, match="is no name of a model on the Hub"):
        download(wanted(repo_id), ignore)
    assert stand_in.asked == []


@pytest.mark.parametrize("token", [None, TOKEN])
def test_no_such_model(wanted: Make, token: str | None) -> None:
    with pytest.raises(UserError, match=r"^The Hub has no model 'org/none', or it is private: check the spelling"):
        download(wanted("org/none", token=token), ignore)


def test_no_network(wanted: Make) -> None:
    with pytest.raises(UserError, match=r"^The Hub cannot be reached: check the network"):
        download(wanted(endpoint=f"http://127.0.0.1:{free_port()}"), ignore)


def test_something_else_answers(stand_in: StandIn, wanted: Make) -> None:
    stand_in.portal = True
    with pytest.raises(UserError, match="something else answers than the Hub"):
        download(wanted(), ignore)


def test_switched_off(wanted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="switched off on this computer by HF_HUB_OFFLINE"):
        download(wanted(), ignore)


def test_version_that_is_gone(stand_in: StandIn, wanted: Make) -> None:
    stand_in.gone = True
    with pytest.raises(UserError, match="this version of it is gone: press Download again"):
        download(wanted(), ignore)


def _with(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files["config.json"] = json.dumps(json.loads(files["config.json"]) | changes).encode()

    return change


def _renamed(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({new: files.pop(old)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_renamed("model.safetensors", "pytorch_model.bin"), "has no .safetensors weights, and others can run code"),
        (_renamed("config.json", "x.gguf"), "holds a GGUF file"),
        (_renamed("config.json", "adapter_config.json"), "is a LoRA adapter and no whole model"),
        (_with(architectures=["BertForMaskedLM"], model_type="bert"), "is an encoder"),
        (_with(quantization_config={"quant_method": "awq", "bits": 4}), "stored in AWQ 4-bit, for which gptqmodel"),
        (_with(architectures=["MistralModel"], model_type="mistral"), "turns texts into numbers"),
    ],
)
def test_of_no_use_is_said_before_the_weights_come(
    stand_in: StandIn, folders: Folders, wanted: Make, change: Callable[[dict[str, bytes]], None], says: str
) -> None:
    change(stand_in.repos[MODEL].files)
    with pytest.raises(UserError, match=says):
        download(wanted(), ignore)
    assert stand_in.weights_asked() == [] and list_models(folders) == []


def test_shard_that_the_hub_lacks(stand_in: StandIn, wanted: Make, sharded: Repo) -> None:
    lacking = next(name for name in sharded.files if name.startswith("model-00002"))
    files = {name: content for name, content in sharded.files.items() if name != lacking}
    stand_in.repos[SHARDED] = Repo(files)
    with pytest.raises(UserError, match=f"not whole on the Hub, {lacking} is missing"):
        download(wanted(SHARDED), ignore)


def test_no_room_on_the_disk(stand_in: StandIn, wanted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=7_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs 10 MB more and the disk with .* has 7\.0 MB left: make room first"):
        download(wanted(), ignore)
    assert stand_in.weights_asked() == []


def test_disk_that_fills_up(wanted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub._Fetching, "_stream", full)
    with pytest.raises(UserError, match=r"^The disk with .* is full: make room and press Download again"):
        download(wanted(), ignore)


def test_bug_is_no_sentence_for_the_user(wanted: Make, caplog: pytest.LogCaptureFixture) -> None:
    def buggy(*_: Any) -> None:
        raise ZeroDivisionError

    report: Report = buggy
    with pytest.raises(ZeroDivisionError):
        download(wanted(), report)
    started = Download(wanted())
    started._note = buggy  # type: ignore[method-assign]
    started.start()
    end = _ended(started)
    assert end.state == "failed" and "Graft's log" in end.message and "ZeroDivisionError" in caplog.text
