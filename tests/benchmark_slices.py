"""Slices of the real benchmark files in a folder of their own, and what is right in each, read without our tasks."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NUM_ROWS = 12
NLI = {"entailment": ("蕴含", "Yes"), "neutral": ("中立", "Maybe"), "contradiction": ("矛盾", "No")}
SECTIONS = {
    "story": "故事", "culture": "文化", "entertainment": "娱乐", "sports": "体育", "finance": "财经", "house": "房产",
    "car": "汽车", "edu": "教育", "tech": "科技", "military": "军事", "travel": "旅游", "world": "世界",
    "stock": "股票", "agriculture": "农业", "game": "游戏",
}  # fmt: skip
# task: (subjects, split) of the slices
EXAMS = {"ceval": (("law", "high_school_physics"), "val"), "mmlu": (("abstract_algebra", "prehistory"), "val"),
         "cmmlu": (("agronomy", "world_history"), "test")}  # fmt: skip
CLUE = {
    "ocnli": ("eval/clue/ocnli/dev.json", "eval/clue/ocnli/train.3k.json"),
    "cmnli": ("derived/clue/cmnli/dev.json", None),
    "afqmc": ("eval/clue/afqmc/dev.json", "derived/clue/afqmc/train.json"),
    "csl": ("eval/clue/csl/dev.json", None),
    "tnews": ("eval/clue/tnews/dev.json", "derived/clue/tnews/train.json"),
    "iflytek": ("eval/clue/iflytek/dev.json", "derived/clue/iflytek/train.json"),
    "cluewsc2020": ("eval/clue/cluewsc2020/dev.json", "eval/clue/cluewsc2020/train.json"),
    "chid": ("derived/clue/chid/dev.json", "derived/clue/chid/train.json"),
}


class Fact(NamedTuple):
    """A question with its right answer is a text that holds all of `parts` and ends in `ending`."""

    parts: tuple[str, ...]
    ending: str

    def fits(self, text: str) -> bool:
        return text.endswith(self.ending) and all(part in text for part in self.parts)


def write_slices(data: Path, folder: Path, num_rows: int = NUM_ROWS) -> None:
    """The first rows of each file of `data` under `folder`, in the official layout. Pools that are not at hand are made
    of later rows of the dev file; CMMLU is made of MMLU's rows in its own format."""
    for task, (dev, train) in CLUE.items():
        own = folder / "clue" / task
        own.mkdir(parents=True)
        lines = (data / dev).read_text(encoding="utf-8").splitlines()
        pool = (data / train).read_text(encoding="utf-8").splitlines() if train else lines[-num_rows:]
        (own / "dev.json").write_text("\n".join(lines[:num_rows]), encoding="utf-8")
        (own / ("train.3k.json" if task == "ocnli" else "train.json")).write_text("\n".join(pool[:num_rows]), "utf-8")
    for split in ("dev", "train"):
        answers = (data / f"derived/clue/chid/{split}_answer.json").read_bytes()
        (folder / f"clue/chid/{split}_answer.json").write_bytes(answers)
    (folder / "clue/c3").mkdir()
    for name in ("d-dev", "m-dev", "d-train"):
        passages = json.loads((data / f"eval/clue/c3/{name}.json").read_text(encoding="utf-8"))[:num_rows]
        (folder / f"clue/c3/{name}.json").write_text(json.dumps(passages, ensure_ascii=False), encoding="utf-8")
    (folder / "clue/cmrc2018").mkdir()
    for name in ("dev", "trial"):
        squad = json.loads((data / f"eval/clue/cmrc2018/{name}.json").read_text(encoding="utf-8"))
        squad["data"] = squad["data"][:4]
        (folder / f"clue/cmrc2018/{name}.json").write_text(json.dumps(squad, ensure_ascii=False), encoding="utf-8")
    for exam in ("ceval", "mmlu"):
        subjects, split = EXAMS[exam]
        for part in (split, "dev"):
            (folder / exam / part).mkdir(parents=True)
            for subject in subjects:
                name = f"{part}/{subject}_{part}.csv"
                (folder / exam / name).write_bytes((data / "eval" / exam / name).read_bytes())
    for part, source in (("test", "val"), ("dev", "dev")):
        (folder / "cmmlu" / part).mkdir(parents=True)
        for subject, other in zip(EXAMS["cmmlu"][0], EXAMS["mmlu"][0], strict=True):
            text = io.StringIO(newline="")
            rows = read_csv(data / f"eval/mmlu/{source}/{other}_{source}.csv")
            csv.writer(text).writerows(
                [["", "Question", *"ABCD", "Answer"], *([number, *row] for number, row in enumerate(rows))]
            )
            (folder / f"cmmlu/{part}/{subject}.csv").write_text(text.getvalue(), encoding="utf-8", newline="")


def facts(folder: Path, task: str, protocol: str, split: str) -> list[Fact]:
    """The right answers to the questions of a file, in the words of the protocol."""
    if task in EXAMS:
        return list(_exam_facts(folder / task, task, protocol, split))
    if task == "c3":
        return list(_c3_facts(folder / "clue/c3", protocol, split))
    if task == "chid":
        return list(_chid_facts(folder / "clue/chid", split))
    path = folder / "clue" / task / f"{split}.json"
    path = path if path.is_file() else path.with_name("train.3k.json")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [_clue_fact(task, protocol, row) for row in rows if row["label"] != "-"]


def _clue_fact(task: str, protocol: str, row: dict) -> Fact:
    pangu = protocol == "pangu"
    if task in ("ocnli", "cmnli"):
        word, template = NLI[row["label"]]
        first, second = row["sentence1"], row["sentence2"]
        return Fact((), f"{first}?{template}，{second}") if pangu else Fact((first, second), f"答案：{word}")
    if task == "afqmc":
        word, (first, second) = ("不同", "相同")[int(row["label"])], (row["sentence1"], row["sentence2"])
        if pangu:
            return Fact((), f"下面两个句子语义{word}:{first}。{second}")
        return Fact((f"1：{first}\n", f"2：{second}\n"), f"答案：{word}")
    if task == "csl":
        word, words = ("不是", "是")[int(row["label"])], row["keyword"]
        if pangu:
            return Fact((), f"摘要:{row['abst']}，关键词:{'+'.join(words)}{word}真实关键词")
        return Fact((row["abst"], "、".join(words)), f"答案：{word}")
    if task == "tnews":
        word = SECTIONS[row["label_desc"].removeprefix("news_")]
        text = row["sentence"]
        return Fact((), f"这是关于{word}的文章:{text}") if pangu else Fact((text,), f"答案：{word}")
    if task == "iflytek":
        word, text = row["label_des"], row["sentence"]
        return Fact((), f"这是关于{word}的应用程序:{text}") if pangu else Fact((text,), f"答案：{word}")
    assert task == "cluewsc2020"
    target, true = row["target"], row["label"] == "true"
    noun, pronoun = target["span1_text"], target["span2_text"]
    if pangu:
        return Fact((), f"{row['text']}其中“{pronoun}”{'指的是' if true else '不是指'}“{noun}”。")
    ends = {target[f"span{n}_index"] + len(target[f"span{n}_text"]): mark for n, mark in (("1", "候选"), ("2", "代"))}
    marks = [f"（{ends[place]}词）" if place in ends else "" for place in range(1, len(row["text"]) + 1)]
    marked = "".join(character + mark for character, mark in zip(row["text"], marks, strict=True))
    return Fact((marked, f"代词“{pronoun}”指的是“{noun}”吗"), f"答案：{'是' if true else '不是'}")


def _exam_facts(folder: Path, exam: str, protocol: str, split: str) -> Iterator[Fact]:
    before = {"ceval": "答案：", "mmlu": "Answer:", "cmmlu": "答案是：" if protocol == "official" else "答案："}[exam]
    gap = " " if protocol == "harness" or exam == "mmlu" else ""
    for subject in EXAMS[exam][0]:
        name = f"{split}/{subject}.csv" if exam == "cmmlu" else f"{split}/{subject}_{split}.csv"
        rows = read_csv(folder / name)
        rows = rows if exam == "mmlu" else [row[1:7] for row in rows[1:]]
        for question, *choices, letter in rows:
            options = "".join(f"\n{name}. {choice}" for name, choice in zip("ABCD", choices, strict=True))
            # One protocol takes white space around the question away.
            yield Fact((question.strip()[-60:],), f"{options}\n{before}{gap}{letter}")


def _c3_facts(folder: Path, protocol: str, split: str) -> Iterator[Fact]:
    for path in sorted(folder.glob(f"*-{split}.json")):
        for texts, questions, _ in json.loads(path.read_text(encoding="utf-8")):
            context = "\n".join(texts)
            for row in questions:
                question, answer = row["question"], row["answer"]
                if protocol == "pangu":
                    yield Fact((), f"问: {question}\n答:{answer}\n该答案来自对话: {context}")
                else:
                    yield Fact((context, f"问题：{question}\n"), f"答案：{answer}")


def _chid_facts(folder: Path, split: str) -> Iterator[Fact]:
    answers = json.loads((folder / f"{split}_answer.json").read_text(encoding="utf-8"))
    for line in (folder / f"{split}.json").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for content in row["content"]:
            for tag in re.findall(r"#idiom\d+#", content):
                filled = content.replace(tag, row["candidates"][answers[tag]])
                yield Fact((), re.sub(r"#idiom\d+#", "____", filled))


def written_answers(folder: Path, name: str) -> list[tuple[str, str, list[str]]]:
    """(context, question, right answers) of each question of a file of CMRC 2018."""
    squad = json.loads((folder / f"clue/cmrc2018/{name}.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in squad["data"] for paragraph in article["paragraphs"]]
    return [
        (paragraph["context"], question["question"], [answer["text"] for answer in question["answers"]])
        for paragraph in paragraphs
        for question in paragraph["qas"]
    ]


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def characters(folder: Path) -> str:
    """Every character that occurs in a file under `folder`."""
    found: set[str] = set()
    for path in folder.rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        found |= set(text) | set(json.dumps(json.loads(text), ensure_ascii=False) if _is_json(path) else "")
    return "".join(sorted(found))


def _is_json(path: Path) -> bool:
    return path.name.endswith("_answer.json") or path.parent.name in ("c3", "cmrc2018")
