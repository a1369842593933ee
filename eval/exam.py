"""Examinations with the choices A to D, by subject: C-Eval, MMLU, CMMLU."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from keju.eval.benchmark_files import BadRow, Files, Row
from keju.eval.task import Item, Task

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Wording:
    """instruction: with {} for the subject's name. question: with {question} and {choices}. before_letter: what stands
    between question and letter. strip: white space around the question goes."""

    instruction: str
    question: str
    before_letter: str = ""
    strip: bool = False


class Exam(Task):
    """columns: those of question, A, B, C, D and answer, in the files' own words. names: subject -> how prompts call
    it. `subjects_of` reads both and the categories from a JSON file beside the task."""

    wordings: Mapping[str, Wording]
    names: Mapping[str, str]
    columns: tuple[str, ...] = ("question", *LETTERS, "answer")
    header: bool = True

    @abstractmethod
    def file_name(self, subject: str, split: str) -> str:
        """Where the questions of a subject lie, in the benchmark's folder."""

    def read(self, files: Files, split: str) -> Iterator[Row]:
        for subject in self.names if files.subjects is None else files.subjects:
            path = files.folder / self.file_name(subject, split)
            if path.is_file():
                # A test file without answers has no such column.
                required = self.columns[:-1] if self.header else self.columns
                yield from files.csv(path, required, header=self.header, group=subject)
            else:
                files.reject(
                    f"{path} does not exist",
                    f"the subject {subject} is missing{self._other(files)}",
                    option="data_dir",
                )

    def read_shots(self, files: Files) -> Iterator[Row]:
        return self.read(files, "dev")

    def _other(self, files: Files) -> str:
        there = [split for split in self.splits if (files.folder / split).is_dir()]
        return f" (--split {there[0]} is there)" if there else ""

    def item(self, row: Row, protocol: str) -> Item:
        wording = self.wordings[protocol]
        question, *cells, answer = (row.fields.get(column) for column in self.columns)
        if not question or not question.strip():
            raise BadRow("the question is empty")
        if answer is not None and answer not in LETTERS:
            raise BadRow(f'the answer is "{answer}", not one of {", ".join(LETTERS)}')
        choices = "".join(f"\n{letter}. {cell}" for letter, cell in zip(LETTERS, cells, strict=True))
        prompt = wording.question.format(question=question.strip() if wording.strip else question, choices=choices)
        return Item(
            prompt,
            tuple(wording.before_letter + letter for letter in LETTERS),
            None if answer is None else LETTERS.index(answer),
            key=str(row.fields.get("id", "")),
        )

    def instruction(self, group: str, protocol: str) -> str:
        return self.wordings[protocol].instruction.format(self.names[group])


def subjects_of(task: str) -> tuple[dict[str, str], dict[str, str], dict[str, list[str]]]:
    """(subject -> name, subject -> category, subset -> subjects) of `eval/tasks/<task>.json`."""
    table = json.loads((resources.files("keju.eval.tasks") / f"{task}.json").read_text(encoding="utf-8"))
    names = {subject: name for subjects in table["categories"].values() for subject, name in subjects.items()}
    categories = {subject: category for category, subjects in table["categories"].items() for subject in subjects}
    return names, categories, table.get("subsets", {})
