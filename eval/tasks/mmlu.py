"""MMLU (arXiv 2009.03300): 57 subjects in four categories.

Files `{test,val,dev}/<subject>_<split>.csv` of data.tar: question, A, B, C, D, answer, without a header; dev holds the
shots. `official` is evaluate.py of hendrycks/test, two blanks before the subject's name included; `harness` is
lm-evaluation-harness' `mmlu`. Both average over all questions. Categories are those of hendrycks/test, where anatomy
is no STEM subject; lm-evaluation-harness counts it as one.
"""

from __future__ import annotations

from keju.eval.exam import Exam, Wording, subjects_of
from keju.eval.task import Protocol

INSTRUCTION = "The following are multiple choice questions (with answers) about {}."
QUESTION = "{question}{choices}\nAnswer:"


class MMLU(Exam):
    version = 1
    folders = ("mmlu", "data")
    splits = ("test", "val")
    protocols = {
        "official": Protocol("letter", first_shots=True),
        "harness": Protocol("letter", first_shots=True),
    }
    wordings = {
        "official": Wording(INSTRUCTION.replace("{}", " {}"), QUESTION, " "),
        "harness": Wording(INSTRUCTION, QUESTION, " ", strip=True),
    }
    names, categories, subsets = subjects_of("mmlu")
    header = False

    def file_name(self, subject: str, split: str) -> str:
        return f"{split}/{subject}_{split}.csv"


TASK = MMLU()
