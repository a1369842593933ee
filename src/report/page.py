"""What all pages share: templates that escape everything, and the lines about machine and versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from keju.report.charts import number
from keju.training.progress import clock, compact
from keju.training.provenance import describe_versions


def page_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("keju.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "clock": lambda seconds: "–" if seconds is None else clock(seconds)}
    environment.filters["compact"] = lambda value: "–" if value is None else compact(value)
    return environment


def page_context() -> dict[str, Any]:
    """Values of page.html.j2."""
    origin = describe_versions()
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": origin["machine"],
        "versions": origin["versions"],
        "commit": origin["git_commit"],
    }
