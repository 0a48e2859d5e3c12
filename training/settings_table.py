"""`python -m training.settings_table`: the settings as the README's table, made from their declaration."""

from __future__ import annotations

from typing import Any

from training.settings_info import SettingInfo, describe


def settings_table() -> str:
    """A Markdown table with a row a setting."""
    rows = ["| Setting | Flag | Default | What it does |", "|---|---|---|---|"]
    rows += [
        f"| {info.label} | `--{info.name.replace('_', '-')}` | {_shown_default(info)} | {_escaped(info.help)} |"
        for info in describe()
    ]
    return "\n".join(rows)


def _shown_default(info: SettingInfo) -> str:
    value: Any = info.default
    if info.kind is bool:
        return "on" if value else "off"
    if isinstance(value, list):
        value = " ".join(value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value != "" else "–"  # noqa: RUF001


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(settings_table())
