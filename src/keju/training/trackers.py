"""The trackers that --report_to names."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations


def check_trackers(names: str | Sequence[str] | None) -> None:
    """Raises ValueError for a tracker that there is not, or whose package is not installed."""
    names = [names] if isinstance(names, str) else list(names or ())
    installed = get_available_reporting_integrations()
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"--report_to {name}: choose from none, all, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in installed:
            raise ValueError(f"--report_to {name}: its package is not installed")
