"""Results as plain text."""

from __future__ import annotations

from harness.measure import Report, Result

COLUMNS = ("provider", "ms", "MiB", "of limit", "keju is", "error")


def text(report: Report) -> str:
    """One table a pass, and who was left out."""
    first = report.results[0]
    lines = [f"{first.op}: {report.case.name}, {first.dtype}"]
    columns = (*COLUMNS, "tokens/s") if report.case.tokens else COLUMNS
    for kind in report.case.work:
        rows = [_row(result)[: len(columns)] for result in report.results if result.kind == kind]
        lines += [f"  {kind}", *_aligned([columns, *rows])]
    if report.unchecked:
        lines.append(f"  nothing was compared: {report.case.reference} in a wider dtype: {report.unchecked}")
    lines += [f"  left out: {name} ({reason})" for name, reason in report.left_out.items()]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> tuple[str, ...]:
    if result.problem:
        return result.provider, result.problem
    return (
        result.provider,
        f"{result.ms:.3f}",
        "-" if result.peak_mib is None else f"{result.peak_mib:.0f}",
        f"{result.of_limit:.0%}",
        "-" if result.ratio is None or result.provider == "keju" else f"{result.ratio:.2f}x as fast",
        "-" if result.error is None else f"{result.error:.0e}",
        "" if result.tokens_per_s is None else f"{result.tokens_per_s:.0f}",
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Names to the left, figures to the right; what went wrong takes the rest of its line."""
    whole = [row for row in rows if len(row) > 2]
    widths = [
        max(len(row[0]) for row in rows),
        *(max(map(len, column)) for column in list(zip(*whole, strict=True))[1:]),
    ]
    lines = []
    for name, *cells in rows:
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False)] if len(cells) > 1 else cells
        lines.append("    " + "  ".join([name.ljust(widths[0]), *shown]))
    return lines
