"""ChID (arXiv 1906.01265): which idiom belongs into a blank?

`dev.json` {"candidates": [ten idioms], "content": [texts with tags like #idiom000001#]} and `dev_answer.json` {tag:
index of the right candidate}; shots from `train.json` and `train_answer.json`. Each tag is a question. The passages of
a row share its candidates, and no idiom is right twice: `official` solves a row as a whole (`acc_joint`), `pangu` each
blank by itself. What is scored is the text that holds the blank, with other blanks left open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from keju.eval.benchmark_files import BadRow, Files, Row
from keju.eval.clue import PANGU, Clue, clue_folders
from keju.eval.task import Item, Protocol

TAG = re.compile(r"#idiom\d+#")
BLANK = "____"


class CHID(Clue):
    version = 1
    folders = clue_folders("chid")
    protocols = {"official": Protocol("template", metric="acc_joint", separator="\n"), "pangu": PANGU}

    def read(self, files: Files, split: str) -> Iterator[Row]:
        answers = files.json(files.path(f"{split}_answer.json"))
        for row in files.json_lines(files.path(f"{split}.json")):
            contents = row.fields.get("content")
            if not isinstance(contents, list) or not all(isinstance(text, str) for text in contents):
                files.reject(row.where, '"content" must be a list of texts')
                continue
            for text in contents:
                for tag in TAG.finditer(text):
                    fields = {**row.fields, "tag": tag.group(), "answer": answers.get(tag.group())}
                    fields |= {"before": text[: tag.start()], "after": text[tag.end() :]}
                    yield Row(row.where, fields)

    def read_shots(self, files: Files) -> Iterator[Row]:
        return self.read(files, "train")

    def item(self, row: Row, protocol: str) -> Item:
        candidates, gold, tag = (row.fields.get(name) for name in ("candidates", "answer", "tag"))
        if not isinstance(candidates, list) or len(candidates) < 2 or not all(candidates):
            raise BadRow('"candidates" must be a list of two or more texts')
        if not isinstance(gold, int) or not 0 <= gold < len(candidates):
            raise BadRow(f"the file of answers has no candidate for {tag}")
        before, after = (TAG.sub(BLANK, row.fields[name]) for name in ("before", "after"))
        return Item(before, tuple(candidates), gold, after=after, passage=row.where, key=tag)


TASK = CHID()
