"""What the ten CLUE tasks (arXiv 2004.05986) share: their files, and the two ways to ask.

`official`: label space, split and measure are CLUE's. CLUE was made for fine-tuning and has no prompts of its own; the
wording follows the form of those that its makers published later (pCLUE): the text, a question, the options, an
answer. Scored is the text of a label or choice, less how likely the model finds it without the question.

`pangu`: the templates of the PanGu-alpha paper (arXiv 2104.12369). Scored is the perplexity of the template filled in
with each label.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from keju.eval.benchmark_files import Files, Row
from keju.eval.task import Item, Protocol, Task

OFFICIAL = Protocol("text", metric="acc_pmi")
PANGU = Protocol("template", metric="acc_token", separator="\n")


def clue_folders(name: str) -> tuple[str, ...]:
    """Where people put a task: under its own name or that of its zip, in a folder of all tasks or without one."""
    names = [name, f"{name}_public", name.upper(), f"{name.upper()}_public"]
    return tuple([*names, *(f"{parent}/{name}" for parent in ("clue", "CLUE") for name in names)])


class Clue(Task):
    suites = ("clue",)
    splits = ("dev",)
    protocols = {"official": OFFICIAL, "pangu": PANGU}

    def read(self, files: Files, split: str) -> Iterator[Row]:
        return files.json_lines(files.path(f"{split}.json"))

    def read_shots(self, files: Files) -> Iterator[Row]:
        return files.json_lines(files.path("train.json"))


class Inference(Clue):
    """Does the second sentence follow from the first? OCNLI and CMNLI."""

    labels = ("entailment", "neutral", "contradiction")
    training_files: tuple[str, ...] = ("train.json",)

    def read(self, files: Files, split: str) -> Iterator[Row]:
        return _agreed(super().read(files, split))

    def read_shots(self, files: Files) -> Iterator[Row]:
        return _agreed(files.json_lines(files.path(*self.training_files)))

    def item(self, row: Row, protocol: str) -> Item:
        premise, hypothesis = row.text("sentence1"), row.text("sentence2")
        gold = row.one_of("label", self.labels)
        if protocol == "pangu":
            return Item(f"{premise}?", ("Yes", "Maybe", "No"), gold, after=f"，{hypothesis}")
        return asked(f"前提：{premise}\n假设：{hypothesis}\n由前提能否推出假设？", ("蕴含", "中立", "矛盾"), gold)


def asked(text: str, choices: Sequence[str], gold: int | None, *, listed: bool = True, **more) -> Item:
    """The question `text`, its options (where they are `listed`), and an answer."""
    options = f"选项：{'，'.join(choices)}\n答案：" if listed else "答案："
    return Item(f"{text}\n{options}", tuple(choices), gold, neutral=options, **more)


def shortlist(names: Sequence[str], gold: int, text: str, size: int = 4) -> tuple[tuple[str, ...], int]:
    """The right name among `size`, and its place: the others and the order are drawn, the same for a text each time."""
    draw = random.Random(text)
    others = draw.sample([name for place, name in enumerate(names) if place != gold], size - 1)
    chosen = [names[gold], *others]
    draw.shuffle(chosen)
    return tuple(chosen), chosen.index(names[gold])


def _agreed(rows: Iterator[Row]) -> Iterator[Row]:
    """Without the rows on which the annotators did not agree (label "-"): the benchmark does not count them."""
    return (row for row in rows if row.fields.get("label") != "-")
