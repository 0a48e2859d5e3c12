"""Twelve families of models by six ways to train by four precisions: each learns, is saved and loads anywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.architectures import ARCHITECTURES
from tests.trials import PlainProcess, files_of, plain_process, save_base, settings_for, train, working_folders
from training.errors import UserError
from training.modules import module_kinds
from training.paths import Folders
from training.skeleton import skeleton

METHODS: dict[str, dict[str, Any]] = {
    "LoRA all-linear": {"learning_rate": 5e-3},
    "LoRA attention only": {
        "learning_rate": 5e-3,
    },
    "DoRA": {"dora": True, "learning_rate": 5e-3},
    "IA3": {"method": "IA3", "learning_rate": 0.1},
    "prefix tuning": {"method": "prefix tuning", "learning_rate": 0.1},
    "full fine-tuning": {"method": "full fine-tuning", "learning_rate": 1e-3},
}
PRECISIONS = ("32-bit", "16-bit", "8-bit", "4-bit")
# The largest difference between a logit before saving and one of the loaded model; logits are about 1 here.
TOLERANCE = {"32-bit": 1e-5, "16-bit": 1e-5, "8-bit": 1e-5, "4-bit": 1e-5}
QUANTIZED = ("8-bit", "4-bit")
ON_CPU = not torch.cuda.is_available()
# What does not apply: the family, the method and the precisions (all where empty), why, and what the user reads.
NOT_APPLICABLE: list[tuple[str, str, tuple[str, ...], str, str]] = [
    (
        "",
        "full fine-tuning",
        QUANTIZED,
        "quantized weights take no small steps",
        "changes the weights themselves",
    ),
    ("falcon", "", QUANTIZED, "transformers quantizes plain layers only", "^Load in: .*cannot be loaded in [84]-bit"),
    ("mamba", "prefix tuning", (), "it has no attention for a prefix", "prefix tuning does not work on this base"),
    *([("", "DoRA", ("8-bit",), "PEFT loses the weights' scales there", "^DoRA .*processor")] if ON_CPU else []),
]


def refusal(family: str, method: str, precision: str) -> str:
    """What the user reads where a combination does not apply; empty where it does."""
    for its_family, its_method, precisions, _, message in NOT_APPLICABLE:
        if its_family in ("", family) and its_method in ("", method) and precision in (precisions or PRECISIONS):
            return message
    return ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = working_folders(tmp_path_factory.mktemp("matrix"))
    for family, config in ARCHITECTURES.items():
        save_base(made, family, config)
    return made


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[PlainProcess]:
    with plain_process() as process:
        yield process


def options(folders: Folders, family: str, method: str, precision: str) -> dict[str, Any]:
    changes = METHODS[method] | {"base_model": family, "precision": precision}
    if method == "LoRA attention only":
        kinds = module_kinds(skeleton(str(folders.models / family)))
        changes["target_modules"] = [kind.name for kind in kinds if kind.part == "attention"]
    return changes


@pytest.mark.parametrize(("family", "method", "precision"), list(itertools.product(ARCHITECTURES, METHODS, PRECISIONS)))
def test_it_learns_is_saved_and_loads_anywhere(
    folders: Folders, elsewhere: PlainProcess, family: str, method: str, precision: str
) -> None:
    changes = options(folders, family, method, precision)
    if message := refusal(family, method, precision):
        with pytest.raises(UserError, match=message):
            train(folders, settings_for(**changes))
        return
    files = files_of(folders.models / family)
    trial = train(folders, settings_for(**changes))

    assert len(trial.losses) == 3 and all(math.isfinite(loss) for loss in trial.losses)
    assert trial.losses[0] > trial.losses[1] > trial.losses[2]
    assert files_of(folders.models / family) == files
    trained = trial.trained()
    assert trained and all(p.dtype == torch.float32 for p in trained.values())
    assert [name for name, p in trained.items() if torch.equal(p, trial.at_start[name])] == []
    if method != "full fine-tuning":
        after = trial.base_after()
        assert after.keys() == trial.base_before.keys()
        assert [n for n, before in trial.base_before.items() if not torch.equal(before.float(), after[n].float())] == []
    loaded = elsewhere.logits(trial.plain_case())
    torch.testing.assert_close(loaded, trial.logits(), atol=TOLERANCE[precision], rtol=0)
