"""Which explanation is that of the idiom? Four choices, idioms held out of all training files.

Rows {"idiom", "choices": [explanation, ...], "answer": index}; those of `idiom_mc_test.jsonl` are scored, shots come
from `idiom_mc_dev.jsonl`. Scored is the whole text of a choice. Explanations differ in how likely they are by
themselves, whatever the idiom, so that `acc_pmi`, which takes that out, is the main metric.
"""

from __future__ import annotations

from pathlib import Path

from keju.eval.task import Item, Task, read_rows

# protocol: (prompt, the same without the idiom), in the words of the training files (data_prepare/corpora/idiom.py)
PROMPTS = {
    "completion": ("成语：{}。解释：", "解释："),
    "instruction": ("解释成语“{}”的意思。", "解释成语的意思。"),
}


class Idiom(Task):
    version = 1
    protocols = tuple(PROMPTS)
    metric = "acc_pmi"
    separator = "\n"

    def items(self, data_dir: Path, protocol: str) -> list[Item]:
        return _read(data_dir / "idiom_mc_test.jsonl", protocol)

    def shots(self, data_dir: Path, protocol: str) -> list[Item]:
        return _read(data_dir / "idiom_mc_dev.jsonl", protocol)

    def is_conversation(self, protocol: str) -> bool:
        return protocol == "instruction"


def _read(path: Path, protocol: str) -> list[Item]:
    prompt, neutral = PROMPTS[protocol]
    return [_item(row, where, prompt, neutral) for where, row in read_rows(path)]


def _item(row: dict, where: str, prompt: str, neutral: str) -> Item:
    idiom, choices, answer = row.get("idiom"), row.get("choices"), row.get("answer")
    if not isinstance(idiom, str) or not idiom:
        raise ValueError(f'{where}: "idiom" must be a text')
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(text, str) and text for text in choices):
        raise ValueError(f'{where}: "choices" must be a list of two or more texts')
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f'{where}: "answer" must be the number of a choice, 0 to {len(choices) - 1}')
    return Item(prompt.format(idiom), tuple(choices), answer, neutral=neutral, where=where)


TASK = Idiom()
