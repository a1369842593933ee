"""C-Eval (arXiv 2305.08322): 52 subjects in four categories, and the hard subset of eight.

Files `{val,dev,test}/<subject>_<split>.csv` of ceval-exam.zip: id, question, A, B, C, D, answer; dev, the shots, has an
explanation as well, test has no answers. `official` is the answer-only prompt of hkust-nlp/ceval, in which the letter
follows the colon at once and all subjects weigh the same; `harness` is lm-evaluation-harness' `ceval-valid`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keju.eval.exam import LETTERS, Exam, Wording, subjects_of
from keju.eval.task import Protocol

QUESTION = "{question}{choices}\n答案："


class CEval(Exam):
    version = 1
    folders = ("ceval", "ceval-exam", "formal_ceval")
    splits = ("val", "test")
    protocols = {
        "official": Protocol("letter", average="macro", first_shots=True),
        "harness": Protocol("letter", first_shots=True),
    }
    wordings = {
        "official": Wording("以下是中国关于{}考试的单项选择题，请选出其中的正确答案。", QUESTION),
        "harness": Wording("以下是中国关于{}的单项选择题，请选出其中的正确答案。", QUESTION, " ", strip=True),
    }
    names, categories, subsets = subjects_of("ceval")

    def file_name(self, subject: str, split: str) -> str:
        return f"{split}/{subject}_{split}.csv"

    def submission(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]] | None:
        """{subject: {id: letter}} of the test questions."""
        letters: dict[str, dict[str, str]] = {}
        for row in rows:
            if row["gold"] is None:
                letters.setdefault(row["group"], {})[row["key"]] = LETTERS[row["pred"]]
        return letters or None


TASK = CEval()
