"""The trackers that --report_to names."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from keju.errors import UserError


def check_trackers(names: str | Sequence[str] | None) -> None:
    """Raises UserError for a tracker that there is not, or whose package is not installed."""
    names = [names] if isinstance(names, str) else list(names or ())
    installed = get_available_reporting_integrations()
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"--report_to {name}: choose from none, all, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in installed:
            raise UserError(f"--report_to {name}: its package is not installed")
