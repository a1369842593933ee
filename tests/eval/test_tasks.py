"""Every task on real rows: who knows the answers has 100%, who knows nothing has chance, shots are of the pool."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from benchmark_slices import CLUE, EXAMS, characters, facts, write_slices, written_answers
from char_tokenizer import build_char_tokenizer
from exam_takers import Indifferent, Oracle

from keju.encoding.encoder import Encoder
from keju.eval.benchmark_files import Files
from keju.eval.evaluation import evaluate
from keju.eval.task import expand_tasks, load_task, task_names

LENGTH = 20_000
# The words of our prompts.
WORDS = """前提假设由能否推出？选项蕴含中立矛盾答案文本这两段的意思是否相同不下面个句子语义摘要关键词它们都真实吗新闻
标题条属于哪一类故事文化娱乐体育财经房产汽车教育科技军事旅游世界股票农业游戏应用描述程序上中代指候阅读以内容回问题该来
自对话章____（）“”：，。？YesMaybeNo以下是中国关于考试的单项选择题请出其正确直接给
Thefollowingaremultiplechoicequestions(withanswers)about.Answer:ABCD \n\t"""
CASES = [
    (task, protocol)
    for task in [*EXAMS, *CLUE, "c3"]
    for protocol in load_task(task).protocols
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_slices(shared / "data", folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder) -> Encoder:
    names = "".join(
        str(name) for task in task_names() if task in EXAMS for name in vars(type(load_task(task)))["names"].values()
    )
    classes = "".join(load_task("iflytek").item.__globals__["CLASSES"])
    return Encoder(build_char_tokenizer(characters(folder) + WORDS + names + classes), LENGTH)


def examine(folder, encoder, model, task, protocol, num_shots, **more):
    subjects, split = EXAMS.get(task, (None, "dev"))
    return evaluate(
        task, model, encoder, folder, num_shots=num_shots, max_length=LENGTH, protocol=protocol,
        split=split, subjects=subjects, **more,
    )  # fmt: skip


@pytest.mark.parametrize("num_shots", [0, 2])
@pytest.mark.parametrize(("task", "protocol"), CASES)
def test_who_knows_the_answers_is_always_right(folder, encoder, task, protocol, num_shots):
    split = EXAMS.get(task, (None, "dev"))[1]
    known = facts(folder, task, protocol, split)
    oracle = Oracle(encoder, lambda text: any(fact.fits(text) for fact in known))
    result = examine(folder, encoder, oracle, task, protocol, num_shots)
    wrong = [row for row in result.rows if row["pred"] != row["gold"]]
    assert not wrong, (wrong[0]["prompt"], wrong[0]["choices"], wrong[0]["gold"])
    assert {name: figure["value"] for name, figure in result.summary["metrics"].items()} == dict.fromkeys(
        result.summary["metrics"], 1.0
    )
    assert result.summary["num_items"] == len(known)
    assert "unk" not in result.example


@pytest.mark.parametrize(("task", "protocol"), CASES)
def test_who_prefers_nothing_has_chance(folder, encoder, task, protocol):
    result = examine(folder, encoder, Indifferent(), task, protocol, 0)
    summary = result.summary
    assert summary["metrics"]["acc"]["value"] == pytest.approx(summary["chance"] if not EXAMS.get(task) else 0.25)
    if summary["metric"] != "acc_joint":  # which draws
        # Divided by lengths, equal scores favour what is long.
        assert summary["metric"] == "acc_token" or summary["accuracy"] == pytest.approx(summary["chance"])


@pytest.mark.parametrize(("task", "protocol"), CASES)
def test_shots_are_solved_rows_of_the_pool_and_never_scored_ones(folder, encoder, task, protocol):
    split, pool = (EXAMS[task][1], "dev") if task in EXAMS else ("dev", "train")
    scored, examples = facts(folder, task, protocol, split), facts(folder, task, protocol, pool)
    oracle = Oracle(encoder, lambda text: False)
    examine(folder, encoder, oracle, task, protocol, 2)

    last_question = "\n问: " if (task, protocol) == ("c3", "pangu") else load_task(task).protocols[protocol].separator
    shots = {text.rpartition(last_question)[0] for text in oracle.asked}
    assert len(shots) == (2 if task in EXAMS else 1)  # one for each subject
    for text in shots:
        assert sum(fact.ending in text and all(part in text for part in fact.parts) for fact in examples) == 2
        assert not any(all(part in text for part in fact.parts or (fact.ending,)) for fact in scored)


def test_the_written_task(folder, encoder):
    known = written_answers(folder, "dev")
    questions = {question: answers for _, question, answers in known}
    contexts = {question: context for context, question, _ in known}

    def answer(text: str) -> str:
        asked = max((question for question in questions if question in text), key=text.rfind)
        assert contexts[asked] in text
        return f"\n {questions[asked][-1]}。\n问题：还有吗？"

    for protocol in ("official", "pangu"):
        result = examine(folder, encoder, Oracle(encoder, lambda text: False, answer), "cmrc2018", protocol, 2)
        assert result.summary["num_items"] == len(known)
        assert result.summary["metrics"]["f1"]["value"] == result.summary["metrics"]["em"]["value"] == 1.0
        assert result.summary["chance"] is None
        nothing = examine(folder, encoder, Indifferent(), "cmrc2018", protocol, 0)
        assert nothing.summary["accuracy"] == 0.0


def test_real_files_hold_what_their_makers_counted(shared):
    """Rows of the whole files, with answers and without."""
    data = shared / "data"
    counts = {"ceval": 1346, "ocnli": 2950, "afqmc": 4316, "csl": 3000, "tnews": 10000, "iflytek": 2599}
    counts |= {"cluewsc2020": 304, "c3": 3816, "cmrc2018": 1042}
    for task, count in counts.items():
        load = load_task(task)
        split = load.splits[0]
        assert len(load.items(Files(data / "eval", load.folders), "official", split)) == count, task
    mmlu = load_task("mmlu")
    assert len(mmlu.items(Files(data / "eval", mmlu.folders), "official", "val")) == 1531
    for task, count in (("cmnli", 12241), ("chid", 2002)):
        load = load_task(task)
        assert len(load.items(Files(data / "derived", load.folders), "official", "dev")) == count


@cache
def official(shared: Path) -> Path:
    return shared / "data/eval/clue_official_samples"


@pytest.mark.parametrize("task", expand_tasks(["clue"]))
def test_the_official_samples_are_read(shared, task):
    """The first rows of the files of the ten downloads, under their official names."""
    load = load_task(task)
    files = Files(official(shared), load.folders)
    for protocol in load.protocols:
        items = load.items(files, protocol, "dev")
        assert items and all(item.answer is not None for item in items)
        pool = load.shots(Files(official(shared), load.folders, "skip"), protocol)
        assert task == "ocnli" or pool


def test_one_row_of_chid_is_many_questions(shared):
    load = load_task("chid")
    items = load.items(Files(official(shared), load.folders), "official", "dev")
    assert len(items) == 7 and len({item.passage for item in items}) == 1
    assert [item.choices[item.gold] for item in items] == [
        "因噎废食", "急功近利", "本末倒置", "画蛇添足", "约定俗成", "不伦不类", "不合时宜"
    ]  # fmt: skip


def test_other_blanks_of_a_text_stay_open(tmp_path):
    content = "甲#idiom000001#乙#idiom000002#丙"
    (tmp_path / "dev.json").write_text(json.dumps({"candidates": ["子", "丑"], "content": [content]}), encoding="utf-8")
    (tmp_path / "dev_answer.json").write_text('{"#idiom000001#": 1, "#idiom000002#": 0}', encoding="utf-8")
    first, second = load_task("chid").items(Files(tmp_path), "official", "dev")
    assert (first.solved, second.solved) == ("甲丑乙____丙", "甲____乙子丙")


def test_a_choice_that_stands_twice_is_one(tmp_path):
    question = {"question": "问", "choice": ["甲", "乙", "甲", "丙"], "answer": "丙"}
    (tmp_path / "dev.json").write_text(json.dumps([[["文"], [question], "1"]]), encoding="utf-8")
    (item,) = load_task("c3").items(Files(tmp_path), "official", "dev")
    assert item.choices == ("甲", "乙", "丙") and item.answer == "丙"


def test_the_right_name_stands_anywhere_in_a_shortlist(shared):
    for task in ("tnews", "iflytek"):
        load = load_task(task)
        items = load.items(Files(shared / "data/eval", load.folders), "pangu", "dev")[:400]
        places = [sum(item.gold == place for item in items) for place in range(4)]
        assert all(len(set(item.choices)) == 4 for item in items)
        assert min(places) > 70, places
        again = load.items(Files(shared / "data/eval", load.folders), "pangu", "dev")[:400]
        assert again == items  # in every run, whatever the hash seed


def test_names_of_iflytek_are_those_of_the_file(shared):
    from keju.eval.tasks.iflytek import CLASSES

    for path in ("eval/clue/iflytek/dev.json", "derived/clue/iflytek/train.json"):
        with (shared / "data" / path).open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        assert all(CLASSES[int(row["label"])] == row["label_des"] for row in rows)


def test_a_cell_that_says_none_is_text(shared):
    load = load_task("mmlu")
    items = load.items(Files(shared / "data/eval", load.folders), "official", "val")
    assert sum("\nA. None\n" in item.prompt or ". None" in item.prompt for item in items) >= 2
    assert not any("nan" in item.prompt.split() for item in items)


def test_suites_and_lists(shared):
    assert len(expand_tasks(["clue"])) == 10
    assert expand_tasks(["mmlu", "clue", "ocnli"])[0] == "mmlu" and len(expand_tasks(["mmlu", "clue", "ocnli"])) == 11
    with pytest.raises(ValueError, match="tasks: clu: choose from afqmc.*clue .all of its tasks"):
        expand_tasks(["clu"])


def test_subjects_and_categories():
    for task, count, categories, subset in (
        ("ceval", 52, 4, ("hard", 8)), ("mmlu", 57, 4, None), ("cmmlu", 67, 4, ("China specific", 15))
    ):  # fmt: skip
        load = load_task(task)
        assert len(load.names) == len(load.categories) == count
        assert len(set(load.categories.values())) == categories
        if subset:
            assert len(load.subsets[subset[0]]) == subset[1] and set(load.subsets[subset[0]]) <= load.names.keys()
