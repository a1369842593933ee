"""Evaluations of several models in one table and one page.

python -m keju.eval_report --runs runs/eval_a runs/eval_b --output_dir runs/eval_report
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from keju.report.evaluations import write_evaluation_report
from keju.training.arguments import parse_arguments
from keju.training.launch import run_stage


@dataclass
class ReportArguments:
    runs: list[str] = field(metadata={"help": "Folders that eval_pretrain wrote, a column for each."})
    output_dir: str = field(metadata={"help": "Folder for report.html and report.md, which are replaced."})


def main() -> None:
    (args,) = parse_arguments(ReportArguments, description=__doc__)
    page = write_evaluation_report([Path(run).expanduser() for run in args.runs], Path(args.output_dir).expanduser())
    print(page.with_suffix(".md").read_text(encoding="utf-8"))
    print(page)


if __name__ == "__main__":
    run_stage(main)
