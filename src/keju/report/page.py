"""What all pages share: templates that escape everything, in HTML and in Markdown; lines about machine and versions."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from keju.report.charts import number
from keju.training.progress import clock, compact
from keju.training.provenance import describe_versions

# A hyphen, plus, dot or hash means something at the beginning of a line alone, where no template puts a text.
SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")  # an underscore within a word means nothing


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


def markdown_environment() -> Environment:
    """For templates of Markdown: every text that is put in stands for itself, on one line."""
    return Environment(
        loader=PackageLoader("keju.report", "."),
        autoescape=False,  # noqa: S701  (by `finalize`)
        finalize=lambda value: in_markdown(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def in_markdown(text: str) -> str:
    """A text as it stands for itself in a cell of a table: no mark-up, no HTML, no line end."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split())).replace("<", "&lt;")


def page_context() -> dict[str, Any]:
    """Values of page.html.j2."""
    origin = describe_versions()
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": origin["machine"],
        "versions": origin["versions"],
        "commit": origin["git_commit"],
    }
