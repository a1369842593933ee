"""Whatever stands in the raw files, readers give items and bad rows, or one UserError that names the file."""

from __future__ import annotations

import json
import shutil

import pytest
from corpus_reading import corpus_module, read_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.errors import UserError

# The files that hold the fuzzed bytes, by corpus.
FILES = {
    "couplet": [["in.txt", "out.txt"], ["couplets.txt"]],
    "classical_modern": [["bitext/书"], ["双语数据/书/章/bitext.txt"]],
    "poetry": [["poet.tang.0.json", "lunyu.json"], ["ci.song.0.json"], ["yuanqu.json", "shijing.json"]],
    "zhidao": [["a_filter.csv"]],
    "baike_qa": [["baike_qa_train.json"]],
    "weibo_summary": [["merge.json"]],
}
NAMES = ("author", "title", "paragraphs", "content", "rhythmic", "chapter", "desc", "answer", "category", "article")
FRAGMENTS = [
    *(
        b"\n",
        b"\r\n",
        b'"',
        b",",
        b"\t",
        b" ",
        b"\xff",
        b"\x00",
        b"\xef\xbb\xbf",
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b"\\ud800",
    ),
    *(
        "天地",
        "山 水",
        "古文：",
        "现代文：",
        "。",
        "，",
        "（",
        "）",
        "□",
        "title,question,reply,is_best\n",
        ",1\n",
        "1",
        "null",
    ),
    *('{"article": "天", "abstract": "地", "comments": [["好", "1"]]}\n', '{"title": "天", "answer": "地"}\n'),
    *('["天，地。", "山，水。"]', '[{"author": "李", "title": "句", "paragraphs": ["天"]}]', '"comments": [["好", 1]]'),
    *(f'"{name}": ' for name in NAMES),
]
JSON = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=8) | st.just("子曰：学而时习之，不亦说乎？有朋自远方来"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "abstract", "comments"]), inner)
    ),
    max_leaves=12,
)
DATA = st.one_of(
    st.binary(max_size=80),
    st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(
        lambda parts: b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    ),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(JSON, max_size=3).map(lambda values: "\n".join(json.dumps(value) for value in values).encode()),
)


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_bytes(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / f"any_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    for path in data.draw(st.sampled_from(FILES[name])):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        content = data.draw(DATA)
        if name == "zhidao" and data.draw(st.booleans()):
            content = b"title,question,reply,is_best\n" + content
        (folder / path).write_bytes(content)
    try:
        items, bad = read_corpus(name, folder)
        assert read_corpus(name, folder, 7) == (items, bad)
    except ValueError as error:
        assert type(error) is UserError and str(error).startswith(str(folder))


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_something_else(tmp_path, name):
    (tmp_path / "thesis.docx").write_text("years of work")
    corpus = corpus_module(name)
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "thesis.docx"):
        with pytest.raises(ValueError) as caught:
            corpus.pieces(folder, 1)
        assert str(caught.value).startswith(f"raw_dir: {folder}: ") and str(caught.value).endswith(corpus.DOWNLOAD)
    assert "thesis.docx: is a file; give the folder it lies in; expected " in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_what_a_corpus_declares(name):
    corpus = corpus_module(name)
    scores = [score for score, _ in corpus.WRONG]
    assert corpus.VERSION >= 1 and scores == sorted(scores, reverse=True)
