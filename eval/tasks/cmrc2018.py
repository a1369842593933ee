"""CMRC 2018 (arXiv 1810.07366): the answer to a question is a piece of the text, which the model writes.

SQuAD files `dev.json`; shots from `train.json`, or from `trial.json`. F1 and exact match are those of the official
evaluation (keju.eval.span_metrics), of the first line that the model writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from keju.errors import UserError
from keju.eval.benchmark_files import BadRow, Files, Row
from keju.eval.clue import Clue, clue_folders
from keju.eval.task import Item, Protocol


class CMRC2018(Clue):
    version = 1
    folders = clue_folders("cmrc2018")
    protocols = {
        "official": Protocol("written", metric="f1"),
        "pangu": Protocol("written", metric="f1", separator="\n"),
    }

    def read(self, files: Files, split: str) -> Iterator[Row]:
        return self._rows(files, (f"{split}.json", f"cmrc2018_{split}.json"))

    def read_shots(self, files: Files) -> Iterator[Row]:
        return self._rows(
            files, tuple(f"{prefix}{name}.json" for name in ("train", "trial") for prefix in ("", "cmrc2018_"))
        )

    def _rows(self, files: Files, names: tuple[str, ...]) -> Iterator[Row]:
        path = files.path(*names)
        try:
            articles = files.json(path)["data"]
            paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
            rows = [
                {**question, "context": paragraph["context"]}
                for paragraph in paragraphs
                for question in paragraph["qas"]
            ]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not in the format of SQuAD ({error!r} is missing)") from error
        return (Row(f"{path}:{row.get('id')}", row) for row in rows)

    def item(self, row: Row, protocol: str) -> Item:
        context, question, answers = row.text("context"), row.text("question"), row.fields.get("answers")
        texts = [answer.get("text") for answer in answers] if isinstance(answers, list) else []
        if not texts or not all(texts):
            raise BadRow('"answers" must be a list of objects with a "text"')
        template = (
            "阅读文章：{}\n问：{}\n答：" if protocol == "pangu" else "阅读以下文章，回答问题。\n{}\n问题：{}\n答案："
        )
        prompt = template.format(context, question)
        return Item(prompt, references=tuple(dict.fromkeys(texts)), key=str(row.fields.get("id", "")))


TASK = CMRC2018()
