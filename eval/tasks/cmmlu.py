"""CMMLU (arXiv 2306.09212): 67 subjects in four categories, and those that are specific to China.

Files `{test,dev}/<subject>.csv`: an unnamed index, Question, A, B, C, D, Answer; dev holds the shots. `official` is the
answer-only prompt of haonan-li/CMMLU, where all subjects weigh the same; `harness` is lm-evaluation-harness' `cmmlu`.
"""

from __future__ import annotations

from keju.eval.exam import LETTERS, Exam, Wording, subjects_of
from keju.eval.task import Protocol

INSTRUCTION = "以下是关于{}的单项选择题，请直接给出正确答案的选项。"


class CMMLU(Exam):
    version = 1
    folders = ("cmmlu", "cmmlu_v1_0_1")
    protocols = {
        "official": Protocol("letter", average="macro", first_shots=True),
        "harness": Protocol("letter", first_shots=True),
    }
    wordings = {
        "official": Wording(INSTRUCTION, "题目：{question}{choices}\n答案是："),
        "harness": Wording(INSTRUCTION, "{question}{choices}\n答案：", " ", strip=True),
    }
    names, categories, subsets = subjects_of("cmmlu")
    columns = ("Question", *LETTERS, "Answer")

    def file_name(self, subject: str, split: str) -> str:
        return f"{split}/{subject}.csv"


TASK = CMMLU()
