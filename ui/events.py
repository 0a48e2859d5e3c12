"""How the page's events behave."""

from __future__ import annotations

from typing import Any

# No spinner over what is being updated, and no entry in the public API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
