"""Our pipeline against the straightforward way to build a corpus, on the same real files.

python tests/bench/data_prepare.py [--pairs 8000 64000] [--poetry 1 4] [--replies 60000] [--texts 200000]

The straightforward way is written here plainly: read everything, and for every item collect the candidates for its
wrong answers from all others, then draw. It cleans nothing, removes no duplicates and splits by position. Ours does all
that it does by default (cleaning, duplicates, splits that share no text, wrong answers), in as many processes as there
are cores; what it takes to start them counts. After both have run, it is seen that they have the same prompts and right
answers, but for what ours reports as dropped, and wrong answers with falling scores. The straightforward way is stopped
after `--patience` times the seconds of ours: it takes the square of the number of rows. Then the ratio is said to be at
least that, and what it has done by then is compared.

Raw data: ../shared/data, whole; larger sizes are the same rows again with every third character changed.

Printed: for each corpus the seconds of both; for classical_modern the growth of ours (seconds a row at the largest size
over those at the smallest, in one process); for duplicates the seconds from raw texts to the list of what goes. The
last line is JSON {"name", "ours", "peer", "ratio", "unit", ...}, of classical_modern at the largest size.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from side_by_side import shared_folder

from keju.data_prepare.corpora import classical_modern
from keju.data_prepare.data_set import corpus_module
from keju.data_prepare.pipeline import engine
from keju.data_prepare.pipeline.build import collect
from keju.data_prepare.pipeline.plan import Plan, fields_by_size
from keju.records.writing import write_jsonl

RAW = shared_folder() / "data"
SHARES = {"test": 0.02, "dev": 0.02, "prompts": 0.1}
Pair = dict[str, Any]


class Changer:
    """Rows again, with every third character drawn from all that there are."""

    def __init__(self, texts: list[str]) -> None:
        self.rng = random.Random(0)
        self.characters = [character for text in texts[:2000] for character in text if character.isalnum()]

    def __call__(self, text: str) -> str:
        drawn = iter(self.rng.choices(self.characters, k=len(text) // 3 + 1))
        return "".join(next(drawn) if place % 3 == 1 else character for place, character in enumerate(text))


def write_classical(folder: Path, num_pairs: int) -> None:
    """Books in the layout of the first version of Classical-Modern."""
    (folder / "bitext").mkdir(parents=True)
    books = sorted((RAW / "raw" / "Classical-Modern" / "bitext").iterdir())
    pairs = {book.name: book.read_text(encoding="utf-8").split("\n\n") for book in books}
    changed = Changer([pair for book in pairs.values() for pair in book])
    share = num_pairs // len(pairs)
    for name, found in pairs.items():
        found = [pair.strip().split("\n") for pair in found if pair.strip()]
        with (folder / "bitext" / name).open("w", encoding="utf-8") as file:
            for number in range(share):
                for line in found[number % len(found)]:
                    label, text = line[:4].partition("：")[0], line.partition("：")[2]
                    file.write(f"{label}：{text if number < len(found) else changed(text)}\n")
                file.write("\n")


def plain_classical(folder: Path) -> Iterator[Pair]:
    """Both ways of every pair; wrong answers from sets of all others of the book, and of all other books."""
    books: dict[str, list[list[str]]] = {}
    for path in sorted((folder / "bitext").iterdir()):
        blocks = [block.split("\n") for block in path.read_text(encoding="utf-8").split("\n\n") if block.strip()]
        books[path.name] = [[line.partition("：")[2].strip() for line in block[:2]] for block in blocks]
    for task, given in (("to modern", 0), ("to classical", 1)):
        prompt, wanted = classical_modern.TASKS[task][0], 1 - given
        for book, pairs in books.items():
            for pair in pairs:
                right = pair[wanted]
                near = {other[wanted] for other in pairs} - {right}
                far = {other[wanted] for name, others in books.items() if name != book for other in others} - {right}
                yield _ranked(prompt.format(pair[given]), right, (near, 0, 2), (far, -1, 2))


def write_poetry(folder: Path, times: int) -> None:
    """chinese-poetry, so many times; its prose is left out."""
    raw = RAW / "raw" / "chinese-poetry"
    paths = [path for path in raw.rglob("*.json") if path.parent.name not in ("lunyu", "sishuwujing")]
    poems = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)}
    changed = Changer([line for found in poems.values() for poem in found for line in _lines(poem)])
    for number in range(times):
        for path, found in poems.items():
            # The numbers in the names of the files of 诗 and 词 go on.
            stem = path.stem.rstrip("0123456789")
            if number and stem == path.stem:
                continue
            name = f"{stem}{int(path.stem[len(stem) :]) + 100_000 * number}.json" if number else path.name
            copy = folder / path.relative_to(raw).with_name(name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            new = [poem | {"paragraphs": [changed(line) for line in _lines(poem)]} for poem in found]
            copy.write_text(json.dumps(new if number else found, ensure_ascii=False), encoding="utf-8")


def _lines(poem: dict[str, Any]) -> list[str]:
    return poem.get("paragraphs") or poem.get("content") or poem.get("para") or []


def plain_poetry(folder: Path) -> Iterator[Pair]:
    """Poems to write by author and title, and to continue from their first line; wrong answers from sets of others."""
    poems: dict[str, list[tuple[str, str, list[str]]]] = {}
    for path in sorted(folder.rglob("*.json")):
        for poem in json.loads(path.read_text(encoding="utf-8")):
            title = poem.get("title") or poem.get("rhythmic") or ""
            genre = poems.setdefault(path.parent.name, [])
            genre.append((poem.get("author", ""), title, _lines(poem)))
    for first in (0, 1):  # the line that the answer begins with
        texts = {
            genre: [(author, "\n".join(lines[first:])) for author, _, lines in found if len(lines) > first]
            for genre, found in poems.items()
        }
        for genre, found in poems.items():
            others = [text for name, poems_there in texts.items() if name != genre for _, text in poems_there]
            for author, title, lines in found:
                if len(lines) <= first:
                    continue
                right = "\n".join(lines[first:])
                near = {text for name, text in texts[genre] if name == author} - {right}
                same_genre = {text for name, text in texts[genre] if name != author} - {right}
                far = set(others) - {right}
                prompt = f"请写出{author}的《{title}》。" if first == 0 else f"请接着往下写。\n{lines[0]}"
                yield _ranked(prompt, right, (near, 0, 2), (same_genre, -1, 1), (far, -2, 1))


def write_zhidao(folder: Path, num_replies: int) -> None:
    folder.mkdir()
    paths = sorted((RAW / "derived" / "raw" / "zhidao").glob("*.csv"))
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        changed = Changer([row[2] for row in rows])
        with (folder / path.name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for number in range(num_replies // len(paths) // 3):
                title, body, reply, _ = rows[number % len(rows)]
                if number >= len(rows):
                    title, reply = changed(title), changed(reply)
                for best in (1, 0, 0):  # the question, its accepted reply and two others
                    writer.writerow([title, body, reply if best else changed(reply), best])


def plain_zhidao(folder: Path) -> Iterator[Pair]:
    """The replies of a question are looked up by its title among all rows of the file."""
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            replies = list(csv.DictReader(file))
        for title in dict.fromkeys(reply["title"] for reply in replies):
            found = [reply for reply in replies if reply["title"] == title]
            answers = [{"answer": reply["reply"], "score": int(reply["is_best"])} for reply in found]
            others = [reply["reply"] for reply in replies if reply["title"] != title and reply["is_best"] == "1"]
            answers += [{"answer": text, "score": -1} for text in random.sample(others, min(1, len(others)))]
            yield {"prompt": title, "answers": answers}


def _ranked(prompt: str, right: str, *candidates: tuple[Any, int, int]) -> Pair:
    answers = [{"answer": right, "score": 1}]
    for texts, score, count in candidates:
        texts = list(texts)
        answers += [{"answer": text, "score": score} for text in random.sample(texts, min(count, len(texts)))]
    return {"prompt": prompt, "answers": answers}


def saved_plan(corpus: str, folder: Path, work: Path, cleaning: dict[str, Any]) -> Plan:
    module = corpus_module(corpus)
    plan = Plan(
        corpus=corpus,
        version=module.VERSION,
        raw_dir=str(folder),
        source="",
        work=str(work),
        seed=0,
        shares=SHARES,
        **fields_by_size(folder, functools.partial(module.pieces, folder)),
        on_bad_line="skip",
        cleaning=cleaning,
    )
    work.mkdir()
    plan.save()
    return plan


def ours(corpus: str, folder: Path, output: Path, num_workers: int) -> dict[str, Any]:
    """Everything but the vocabulary and the page; what `collect` says of it."""
    plan = saved_plan(corpus, folder, Path(f"{output}.work"), {"simplify": False})
    engine.run_here(plan, num_workers, lambda total, title: nullcontext(NoBar()))
    output.mkdir()
    found = collect(plan, output)
    shutil.rmtree(plan.work)
    return found


class NoBar:
    def advance(self, n: int, **shown: Any) -> None:
        pass


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, found


Plain = Callable[[Path], Iterator[Pair]]


def compare(corpus: str, folder: Path, plain: Plain, num_workers: int, patience: float) -> dict[str, Any]:
    """Seconds of ours and of the plain way, and whether this was stopped, after a look at what both have made."""
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        seconds, found = timed(lambda: ours(corpus, folder, temporary / "ours", num_workers))
        rows, begun, stopped = [], time.perf_counter(), False
        for row in plain(folder):
            rows.append(row)
            if stopped := time.perf_counter() - begun > patience * seconds:
                break
        random.shuffle(rows)
        write_jsonl(temporary / "dev.jsonl", rows[: len(rows) // 50])
        write_jsonl(temporary / "train.jsonl", rows[len(rows) // 50 :])
        plain_seconds = time.perf_counter() - begun
        check(corpus, found, temporary / "ours", rows, stopped)
    return {"ours": seconds, "peer": plain_seconds, "stopped": stopped}


def check(corpus: str, found: dict[str, Any], folder: Path, plain: list[Pair], stopped: bool) -> None:
    """Raises AssertionError unless our rows are those of the plain way, as far as they are not reported as dropped and
    it has come to them."""
    by_prompt = corpus == "classical_modern"  # the others are asked for in other words
    right = {(row["prompt"] if by_prompt else "", row["answers"][0]["answer"]) for row in plain}
    ours = set()
    for path in folder.glob("*.jsonl"):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if "answers" in row:
                scores = [answer["score"] for answer in row["answers"]]
                assert scores == sorted(scores, reverse=True)
                ours.add((row["prompt"] if by_prompt else "", row["answers"][0]["answer"]))
    dropped = sum(step["rows_in"] - step["rows_out"] for step in found["steps"])
    same = len(ours & right)
    print(f"{corpus}: right answers: ours {len(ours)}, plain {len(right)}, the same {same}; {dropped} rows dropped")
    # Cleaning changes some texts, and ours keeps prompts without answers for PPO.
    assert same > (0.75 * len(right) if stopped else 0.9 * len(ours))


def deduplication(num_texts: int, num_workers: int) -> float:
    """Seconds from short texts to the list of those that go."""
    lines = (RAW / "raw" / "couplet" / "test" / "in.txt").read_text(encoding="utf-8").splitlines()
    texts = ["".join(line.split()) for line in lines if line.strip()]
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "texts.txt").open("w", encoding="utf-8") as file:
            for _ in range(num_texts):
                file.write("，".join(rng.choices(texts, k=3)) + "\n")
        plan = saved_plan("records", folder / "texts.txt", folder / "work", {})
        stages, engine.STAGES = engine.STAGES, dict(list(engine.STAGES.items())[:3])  # up to what goes
        seconds, _ = timed(lambda: engine.run_here(plan, num_workers, lambda total, title: nullcontext(NoBar())))
        engine.STAGES = stages
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[8000, 64000])
    parser.add_argument("--poetry", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--replies", type=int, default=60000)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--patience", type=float, default=12, help="times ours, until the plain way is stopped")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds_a_row = []
        write_classical(folder / "first", 1000)
        ours("classical_modern", folder / "first", folder / "first.alone", 1)  # imports what the others have then
        for num_pairs in args.pairs:
            raw = folder / f"classical{num_pairs}"
            write_classical(raw, num_pairs)
            alone, _ = timed(lambda raw=raw: ours("classical_modern", raw, Path(f"{raw}.alone"), 1))
            seconds_a_row.append(alone / num_pairs)
            found = compare("classical_modern", raw, plain_classical, args.workers, args.patience)
            results.append(report(f"classical_modern, {num_pairs} pairs", **found))
        growth = seconds_a_row[-1] / seconds_a_row[0]
        print(
            f"classical_modern: a row takes {growth:.2f} times as long at {args.pairs[-1]} pairs as at {args.pairs[0]}"
        )
        for times in args.poetry:
            raw = folder / f"poetry{times}"
            write_poetry(raw, times)
            report(f"poetry, {times} times", **compare("poetry", raw, plain_poetry, args.workers, args.patience))
        write_zhidao(folder / "zhidao", args.replies)
        found = compare("zhidao", folder / "zhidao", plain_zhidao, args.workers, args.patience)
        report(f"zhidao, {args.replies} replies", **found)
    seconds = deduplication(args.texts, args.workers)
    print(f"duplicates among {args.texts} short texts: {seconds:.1f} s")
    print(json.dumps(results[-1] | {"growth": round(growth, 3), "deduplication_seconds": round(seconds, 1)}))


def report(name: str, ours: float, peer: float, stopped: bool) -> dict[str, Any]:
    at_least = "at least " * stopped
    print(f"{name}: ours {ours:.1f} s, plain {at_least}{peer:.1f} s, ratio {at_least}{peer / ours:.1f}", flush=True)
    more = {"unit": "s"} | ({"stopped": True} if stopped else {})
    return {"name": name, "ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(peer / ours, 2), **more}


if __name__ == "__main__":
    main()
