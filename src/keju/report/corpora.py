"""What a corpus became, to be looked at before training: report.html of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keju.records.writing import write_text
from keju.report.charts import Bar, bar_chart, column_chart
from keju.report.page import page_context, page_environment

SOURCES_SHOWN = 12


def write_corpus_report(found: Mapping[str, Any], path: Path, *, title: str) -> None:
    """found: what `keju.data_prepare.pipeline.build.collect` returns."""
    # ranked_train of ranked_train-*-of-00012.jsonl
    files = [_file(pattern.partition(".")[0].partition("-*")[0], counts) for pattern, counts in found["files"].items()]
    page = page_environment().get_template("corpora.html.j2")
    steps = [
        step | {"did_something": number == 0 or bool(step["dropped"] or step.get("rows_changed"))}
        for number, step in enumerate(found["steps"])
    ]
    context = {"title": title, "files": files, "steps": steps, "missing": found["missing_wrong_answers"]}
    write_text(path, page.render(**context, **page_context()))


def _file(name: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    rows = counts["rows"]
    lengths = sorted((int(length), count) for length, count in counts["lengths"].items())
    sources = sorted(counts["sources"].items(), key=lambda source: (-source[1], source[0]))
    answers = {int(number): count for number, count in counts["answers"].items()}
    num_answers = sum(number * count for number, count in answers.items())
    charts = [column_chart(dict(lengths), title=f"{name}: rows by length of what is learned", xlabel="characters")]
    if tokens := {int(length): count for length, count in counts.get("token_lengths", {}).items()}:
        title = f"{name}: the same in tokens, of {sum(tokens.values())} rows"
        charts.append(column_chart(tokens, title=title, xlabel="tokens"))
    if len(sources) > 1:
        shown = [Bar(source or "–", count / rows) for source, count in sources[:SOURCES_SHOWN]]
        rest = sum(count for _, count in sources[SOURCES_SHOWN:])
        shown += [Bar(f"{len(sources) - SOURCES_SHOWN} others", rest / rows)] if rest else []
        charts.append(bar_chart(shown, title=f"{name}: share of each source"))
    return {
        "name": name,
        "rows": rows,
        "characters": sum(length * count for length, count in lengths),
        "answers": num_answers / sum(answers.values()) if answers else None,
        "charts": [Markup(chart) for chart in charts],
        "samples": [_sample(row) for row in counts["samples"]],
    }


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a person reads it: the prompt, the answers from the best on."""
    answers = sorted(row.get("answers", []), key=lambda answer: -answer["score"])
    said = row.get("messages", row.get("prompt", row.get("text")))
    if not isinstance(said, str):
        said = "\n".join(f"{turn['role']}: {turn['content']}" for turn in said)
    more = {"prefix": row.get("prefix") or row.get("label", ""), "source": row.get("source", "")}
    return {"prompt": said, "answers": answers, **more}
