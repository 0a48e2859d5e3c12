"""Errors whose text may be shown to the user word for word; everything else is a bug and goes to the log."""

from __future__ import annotations


class UserError(ValueError):
    """One plain sentence that says what is wrong and what to do.

    A ValueError, so that pydantic collects those its validators raise.
    """


class SettingsError(UserError):
    """All that is wrong with a set of settings, by setting name, so that everything can be mended in one go."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("\n".join(problems.values()))
        self.problems = problems


class Diverged(UserError):  # noqa: N818 - what happened, not what is wrong with the program
    """The loss is no number any more, or far too high: going on would only spoil what was learnt."""
