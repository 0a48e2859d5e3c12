"""What the README says is what the program does."""

from __future__ import annotations

import app
from training.paths import PROJECT
from training.settings_table import settings_table

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_settings_table_is_the_declaration() -> None:
    assert settings_table() in README, "run: python -m training.settings_table, and put its output into README.md"


def test_every_option_of_the_page_is_named() -> None:
    options = [o for action in app.build_parser()._actions for o in action.option_strings if o.startswith("--")]
    assert [o for o in options if o != "--help" and o not in README] == []


def test_both_commands_are_there() -> None:
    assert "python3 start.py\n" in README
    assert "python3 start.py test\n" in README


def test_linked_files_exist() -> None:
    for name in ("LICENSE", "CHANGELOG.md", "docs/page.png"):
        assert name in README
        assert (PROJECT / name).is_file()
