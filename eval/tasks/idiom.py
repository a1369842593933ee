"""Which explanation is that of the idiom? Four choices, idioms held out of all training files.

Rows {"idiom", "choices": [explanation, ...], "answer": index}; those of `idiom_mc_test.jsonl` are scored, shots come
from `idiom_mc_dev.jsonl`. Scored is the whole text of a choice. Explanations differ in how likely they are by
themselves, whatever the idiom, so that `acc_pmi`, which takes that out, is the main metric.
"""

from __future__ import annotations

from collections.abc import Iterator

from keju.eval.benchmark_files import BadRow, Files, Row
from keju.eval.task import Item, Protocol, Task

# protocol: (prompt, the same without the idiom), in the words of the training files (data_prepare/corpora/idiom.py)
PROMPTS = {
    "completion": ("成语：{}。解释：", "解释："),
    "instruction": ("解释成语“{}”的意思。", "解释成语的意思。"),
}


class Idiom(Task):
    version = 1
    folders = ("idiom",)
    protocols = {
        "completion": Protocol("text", metric="acc_pmi", separator="\n"),
        "instruction": Protocol("text", metric="acc_pmi", separator="\n", conversation=True),
    }

    def read(self, files: Files, split: str) -> Iterator[Row]:
        return files.json_lines(files.path(f"idiom_mc_{split}.jsonl"))

    def read_shots(self, files: Files) -> Iterator[Row]:
        return self.read(files, "dev")

    def item(self, row: Row, protocol: str) -> Item:
        idiom, choices, answer = row.text("idiom"), row.fields.get("choices"), row.fields.get("answer")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise BadRow('"choices" must be a list of two or more texts')
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise BadRow(f'"answer" must be the number of a choice, 0 to {len(choices) - 1}')
        prompt, neutral = PROMPTS[protocol]
        return Item(prompt.format(idiom), tuple(choices), answer, neutral=neutral)


TASK = Idiom()
