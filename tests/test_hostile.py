"""What is made to do harm is refused in one sentence, with nothing read or written outside and nothing executed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hostile import SECRET, Case, Yard, cases
from training.errors import UserError

_CASES = cases()
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    return Yard(tmp_path_factory.mktemp("hostile"))


def is_one_sentence(message: str, root: Path) -> bool:
    """Whether this is one line with a full stop at its end, where names and paths do not count."""
    plain = _QUOTED.sub("name", message.replace(str(root), ""))
    ends = re.findall(r"[.!?](?=\s+[A-Z]|$)", plain)
    return "\n" not in message and len(ends) == 1 and plain.endswith(".") and len(message) < 1000


def test_there_are_enough() -> None:
    assert len(_CASES) >= 300
    assert {case.kind for case in _CASES} >= {"safe name", "data file", "upload", "template", "model", "adapter"}


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_refused_in_one_sentence(yard: Yard, case: Case) -> None:
    act = case.make(yard)
    before = yard.snapshot()
    with pytest.raises(UserError) as caught:
        act()
    message = str(caught.value)
    assert is_one_sentence(message, yard.root), message
    assert SECRET not in message and "root:x:" not in message and "Traceback" not in message
    after = yard.snapshot()
    assert {path for path in before | after if before.get(path, 0) != after.get(path, 0)} == set()
    assert not yard.pwned.exists()
    for path in yard.uploads.iterdir():
        path.unlink()
