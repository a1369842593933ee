"""Copies of evaluation sets are found, with small changes too; what every text may say is not taken for one."""

import csv
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.cleaning.cleaner import Cleaner, Dropped
from keju.data_prepare.cleaning.contamination import MAX_TEXTS, EvaluationNgrams, write_evaluation_ngrams
from keju.data_prepare.cleaning.evaluation_texts import evaluation_texts
from keju.data_prepare.cleaning.ngrams import SEPARATOR, ngram_hashes, runs_at
from keju.data_prepare.cleaning.set_phrases import without_set_phrases
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.corpus import Item

QUESTION = "某住宅小区业主从事的下列行为中，不必将相关情况告知物业服务人的情形是____。"
LENGTH = 13


@pytest.fixture(scope="module")
def ngrams(shared, tmp_path_factory):
    """Of C-Eval's validation files and of CLUE's development files in four layouts."""
    folder = tmp_path_factory.mktemp("ngrams") / "evaluation"
    sets = [
        shared / "data/eval" / name for name in ("ceval/val", "clue/cmrc2018", "clue/c3", "clue/tnews", "clue/ocnli")
    ]
    write_evaluation_ngrams(sets, folder)
    return folder


@pytest.fixture
def written(tmp_path):
    """Write evaluation sets of these texts, and return their n-grams and the summary."""

    def write(*texts):
        (tmp_path / "sets").mkdir(exist_ok=True)
        lines = [json.dumps({"question": text}, ensure_ascii=False) for text in texts]
        (tmp_path / "sets/dev.jsonl").write_text("\n".join(lines), encoding="utf-8")
        summary = write_evaluation_ngrams([tmp_path / "sets"], tmp_path / "ngrams")
        return EvaluationNgrams(tmp_path / "ngrams"), summary

    return write


def questions(shared):
    for path in sorted((shared / "data/eval/ceval/val").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield f"val/{path.name}", row["question"]


def test_a_planted_question_is_dropped_and_its_file_named(ngrams):
    cleaner = Cleaner(CleaningSettings(), str(ngrams))
    row = {"prompt": f"请回答：{QUESTION}", "answers": [{"answer": "业主甲将其房屋出租", "score": 1}]}
    dropped = cleaner.clean(Item(row, "qa.json:5", "5"))
    assert dropped == Dropped(
        "evaluation sets", "shares 13 characters or words with val/law_val.csv",
        "qa.json:5: row 3: 某住宅小区业主从事的下列行为中不必将相关情况告知物业服务人的情形是",
    )  # fmt: skip
    assert cleaner.steps[-1].as_row()["dropped"][dropped.reason] == {"rows": 1, "examples": [dropped.example]}


def test_every_question_that_is_long_enough_is_found_with_small_changes_too(ngrams, shared):
    found, rng, seen = EvaluationNgrams(ngrams), random.Random(1), 0
    for _, question in questions(shared):
        count = len(ngram_hashes(question, LENGTH))
        if not 2 * LENGTH < count <= 50:
            continue
        seen += 1
        assert found.overlap([question]), question
        cut = rng.randrange(len(question))
        edited = f"问，{question[:cut]}改{question[cut + 1 :]}".replace("，", " ").replace("。", "\n")
        assert found.overlap(["一段无关的文字", edited]), edited
    assert seen > 150


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("这部《战国无双3》（）是由光荣和ω-force开发的战国无双系列的正统第三续作。本作以三大故事为主轴，"
         "分别是以武田信玄等人为主的《关东三国志》，织田信长等人为主的《战国三杰》，"
         "石田三成等人为主的《关原的年轻武者》，丰富游戏内的剧情。", "cmrc2018/dev.json"),
        ("女：是呀，虽说那边环境好，待遇也不错，可我还是觉得在家里最好。", "c3/d-dev.json"),
        ("江疏影甜甜圈自拍，迷之角度竟这么好看，美吸引一切事物", "tnews/dev.json"),
        ("东、中、西部地区要加强多种形式的合作,在协调发展中逐步实现共同富裕", "ocnli/dev.json"),
    ],
)  # fmt: skip
def test_other_layouts(ngrams, text, file):
    assert EvaluationNgrams(ngrams).overlap([text]).where.startswith(file)


def test_ordinary_text_is_kept(ngrams, shared):
    found = EvaluationNgrams(ngrams)
    lines = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")
    hits = [overlap for line in lines if (overlap := found.overlap([line]))]
    assert len(hits) <= 0.002 * len(lines), hits
    assert len(hits) == 1 and hits[0].where.startswith("val/tax_accountant_val.csv"), "a copy that is there"


def test_wording_of_tasks_and_names_are_no_evidence(written):
    wording = "根据下面的材料判断以下说法中正确的是哪一项"
    tails = [f"第{number}题{chr(0x4E00 + 7 * number) * 4}" for number in range(MAX_TEXTS + 1)]
    found, summary = written(*(wording + tail for tail in tails), "由全国人民代表大会常务委员会决定", QUESTION)
    assert summary.ngrams_too_common == len(ngram_hashes(wording + "第", LENGTH))
    assert found.overlap([wording]) is None
    assert found.overlap([wording + tails[3]]).where == "sets/dev.jsonl:4"
    assert found.overlap(["由全国人民代表大会常务委员会审议"]) is None
    assert found.overlap(["由全国人民代表大会常务委员会决定"]) is None
    assert found.overlap([QUESTION]).where == f"sets/dev.jsonl:{MAX_TEXTS + 3}"


def test_the_same_text_in_many_rows_counts_once(written):
    found, summary = written(*[QUESTION] * (MAX_TEXTS + 5))
    assert summary.texts == 1 and summary.ngrams_too_common == 0
    assert found.overlap([QUESTION]).where == "sets/dev.jsonl:1"


def test_one_run_of_a_long_passage_is_no_evidence(written):
    rng = random.Random(1)
    passage = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(1000))
    found, _ = written(passage)
    assert found.overlap([passage[100:120]]) is None
    assert found.overlap([passage[100:140]]).run == passage[100:140]


def test_short_texts_are_left_out_and_counted(written):
    _, summary = written("太短了", QUESTION)
    assert (summary.texts, summary.texts_too_short) == (1, 1)


def test_runs_do_not_go_from_one_text_to_the_next(written):
    found, _ = written(QUESTION)
    assert found.overlap([QUESTION[:12], QUESTION[12:24]]) is None
    assert len(ngram_hashes(SEPARATOR.join([QUESTION[:14], QUESTION[14:28]]), LENGTH)) > 0


def test_english_counts_by_words(written):
    text = "What is the embryological origin of the hyoid bone in a human being of today?"
    found, _ = written(text)
    assert found.overlap([text.upper().replace(" ", "  ")])
    assert found.overlap(["What is the embryological origin of the hyoid bone"]) is None


@given(st.text(st.sampled_from("甲乙丙丁aB1 ，。_-\u0130𠮷é"), max_size=60), st.integers(1, 5))
def test_hashes_are_those_of_the_units(text, length):
    hashes = ngram_hashes(text, length)
    count = len(ngram_hashes(text, 1))
    assert len(hashes) == max(count - length + 1, 0)
    for start, expected in enumerate(hashes):
        (run,) = runs_at(text, [start], length)
        assert ngram_hashes(run, length).tolist() == [expected], "the same units have the same hash anywhere"
    units = "".join(runs_at(text, range(count), 1))
    assert units.replace(" ", "") == "".join(character for character in text.lower() if character.isalnum())


@given(st.text(st.sampled_from("甲乙丙丁戊己庚辛"), min_size=3, max_size=40))
def test_equal_runs_and_only_they_have_equal_hashes(text):
    hashes = ngram_hashes(text, 3).tolist()
    runs = [text[start : start + 3] for start in range(len(text) - 2)]
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))


def test_set_phrases():
    assert without_set_phrases("全国人民代表大会常务委员会") == ""
    assert without_set_phrases("届全国人民代表大会常务委员") == "届"
    assert without_set_phrases("不必将相关情况告知") == "不必将相关情况告知"


def test_the_result_is_the_same_each_time(shared, tmp_path):
    folder = shared / "data/eval/ceval/dev"
    summaries = [write_evaluation_ngrams([folder], tmp_path / name) for name in ("one", "two")]
    assert summaries[0] == summaries[1]
    arrays = [np.load(tmp_path / name / "sources.npy") for name in ("one", "two")]
    assert np.array_equal(*arrays)


def test_gbk_is_read_and_said(tmp_path, caplog):
    (tmp_path / "a.csv").write_bytes("问,答\r\n春眠,不觉晓\r\n".encode("gbk"))
    assert [text for _, text in evaluation_texts(tmp_path)] == ["问", "答", "春眠", "不觉晓"]
    assert caplog.messages == [f"{tmp_path}/a.csv: this is GBK (GB18030), not UTF-8, and is read as such"]


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ValueError, match="^decontaminate: .*nowhere: no such folder"):
        write_evaluation_ngrams([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ValueError, match="has no file that ends in .csv, .json, .jsonl"):
        write_evaluation_ngrams([tmp_path], tmp_path / "out")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="a.jsonl:2: is no JSON"):
        write_evaluation_ngrams([tmp_path], tmp_path / "out")
    (tmp_path / "a.jsonl").write_text('{"a": "太短"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="no text of 13 characters or words"):
        write_evaluation_ngrams([tmp_path], tmp_path / "out")
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.jsonl: not UTF-8 text \(invalid start byte at byte 7\)"):
        write_evaluation_ngrams([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="holds no n-grams of evaluation sets; write them anew"):
        Cleaner(CleaningSettings(), str(tmp_path))
