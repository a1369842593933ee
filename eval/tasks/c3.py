"""C3 (arXiv 1904.09679): questions about a dialogue or a text, each with two to four choices of its own.

`d-dev.json` (dialogues) and `m-dev.json` (mixed texts), or both in one `dev.json`; shots from the files of train. Each
is a list of [[utterances], [{"question", "choice": [...], "answer"}], id].
"""

from __future__ import annotations

from collections.abc import Iterator

from keju.eval.benchmark_files import BadRow, Files, Row
from keju.eval.clue import Clue, asked, clue_folders
from keju.eval.task import Item


class C3(Clue):
    version = 1
    folders = clue_folders("c3")

    def read(self, files: Files, split: str) -> Iterator[Row]:
        parts = [name for name in (f"d-{split}.json", f"m-{split}.json") if (files.folder / name).is_file()]
        for name in parts or [f"{split}.json"]:
            path = files.path(name, f"d-{split}.json", f"m-{split}.json")
            for number, passage in enumerate(files.json(path), start=1):
                try:
                    context, questions, key = passage
                    rows = [{**question, "context": "\n".join(context), "key": key} for question in questions]
                except (TypeError, ValueError):
                    files.reject(f"{path}:[{number}]", "expected [[texts], [questions], id]")
                else:
                    yield from (Row(f"{path}:[{number}][{place}]", row) for place, row in enumerate(rows, start=1))

    def read_shots(self, files: Files) -> Iterator[Row]:
        return self.read(files, "train")

    def item(self, row: Row, protocol: str) -> Item:
        context, question, answer, choices = (
            row.fields.get(name) for name in ("context", "question", "answer", "choice")
        )
        if not isinstance(choices, list) or len(choices) < 2 or not all(choices):
            raise BadRow('"choice" must be a list of two or more texts')
        if answer not in choices:
            raise BadRow('"answer" is none of the choices')
        choices = tuple(dict.fromkeys(choices))  # one row has a choice twice
        gold, key = choices.index(answer), str(row.fields["key"])
        if protocol == "pangu":
            return Item(f"问: {question}\n答:", choices, gold, after=f"\n该答案来自对话: {context}", key=key)
        return asked(f"阅读以下内容，回答问题。\n{context}\n问题：{question}", choices, gold, key=key)


TASK = C3()
