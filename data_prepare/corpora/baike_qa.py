"""Questions and answers by category, baike_qa_2019 of nlp_chinese_corpus: 1.4 million of all subjects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.raw_files import file_pieces, wrong_folder
from keju.data_prepare.raw_json import json_lines, text_field
from keju.errors import UserError

VERSION = 1
DOWNLOAD = "the link to baike2018qa.zip is in https://github.com/brightmart/nlp_chinese_corpus (百科类问答)"
WRONG = ((0, 1), (-1, 1), (-2, 1))  # of the same category, of the same top category, of another
LINE_END = re.compile(r"\r\n|\r")


def pieces(folder: Path, piece_bytes: int) -> list[Piece]:
    paths = [path for path in folder.glob("baike_qa_*.json") if path.is_file()]
    if not paths:
        raise wrong_folder(folder, "baike_qa_train.json or baike_qa_valid.json", DOWNLOAD)
    return file_pieces(folder, paths, piece_bytes)


def read(folder: Path, piece: Piece) -> Iterator[Item | BadRow]:
    """One item a question."""
    for line in json_lines(folder, piece):
        try:
            yield line if isinstance(line, BadRow) else _item(*line)
        except UserError as error:
            yield BadRow(line[0], str(error))


def _item(where: str, fields: dict[str, Any]) -> Item:
    title, description, answer, category = (
        LINE_END.sub("\n", text_field(fields, name)) for name in ("title", "desc", "answer", "category")
    )
    if not answer:
        raise UserError('"answer" is empty')
    # The description often says the title again.
    prompt = description if title in description else f"{title}\n{description}" if description else title
    if not prompt:
        raise UserError('"title" and "desc" are empty')
    top = category.partition("-")[0]
    row = {"prompt": prompt, "answers": [{"answer": answer, "score": 1}]}
    return Item(row, where, group=title or prompt, source=top, keys=(category, top))
