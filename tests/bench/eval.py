"""C-Eval and MMLU, 5-shot: our evaluation against lm-evaluation-harness with its hf backend, on the same rows.

python tests/bench/eval.py

First every log-likelihood of every choice must agree, for C-Eval, MMLU and (where its files are) CMMLU; then both are
timed in turns, end to end: reading, prompts, tokens, scores. The bound is the ratio of the tokens that both compute.
`--subjects 99 --shot_tokens 0 --rounds 0` compares all subjects and times nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import transformers
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from side_by_side import ours, report, shared_folder, tiny_llama, with_attention

from keju.encoding.encoder import Encoder
from keju.eval.evaluation import evaluate
from keju.eval.local_model import LocalModel
from keju.eval.task import load_task
from keju.models.loading import load_causal_lm, load_tokenizer
from keju.records.writing import write_json

# (our name of the task, theirs of a subject, the split with answers)
EXAMS = {"ceval": ("ceval-valid_{}", "val"), "mmlu": ("mmlu_{}", "val"), "cmmlu": ("cmmlu_{}", "test")}
TOLERANCE = 1e-4


@dataclass
class Run:
    """What one side made of an exam. logprobs: {(subject, row): [one a choice]}."""

    seconds: float
    tokens: int
    logprobs: dict[tuple[str, int], list[float]]
    accuracy: float


def main() -> None:
    args = arguments()
    model, tokenizer = build(args)
    results = []
    for exam in args.exams:
        subjects = long_shots(exam, tokenizer, args)
        sides = {
            "ours": lambda exam=exam, subjects=subjects: run_ours(exam, subjects, model, tokenizer, args),
            "peer": lambda exam=exam, subjects=subjects: run_peer(exam, subjects, model, tokenizer, args),
        }
        first = {side: run() for side, run in sides.items()}  # a warm-up too
        compare(exam, first["ours"], first["peer"])
        if args.rounds and exam in args.timed:
            results.append(time_both(exam, subjects, sides, args))
    if not args.rounds:
        return
    seconds = {side: sum(result[side] for result in results) for side in ("ours", "peer")}
    questions = sum(result["questions"] for result in results)
    report("eval", questions / seconds["ours"], questions / seconds["peer"], "questions/s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = {"rounds": 2, "threads": 2, "hidden_size": 512, "layers": 8, "shots": 5, "shot_tokens": 600}
    for name, value in {**options, "subjects": 3, "token_budget": 4096, "batch_size": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--data_dir", default=str(shared_folder() / "data/eval"), help="folder of ceval, mmlu, cmmlu")
    parser.add_argument("--model", help="a checkpoint folder (default: a random Llama with the vocabulary of Llama)")
    args = parser.parse_args()
    args.data_dir = Path(args.data_dir)
    args.exams = [exam for exam in EXAMS if (args.data_dir / exam).is_dir()]
    if not args.exams:
        parser.error(f"--data_dir {args.data_dir}: there is no folder {', '.join(EXAMS)} in it")
    args.timed = [exam for exam in args.exams if exam != "cmmlu"]
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    return args


def build(args: argparse.Namespace):
    if args.model:
        tokenizer = load_tokenizer(args.model)
        return load_causal_lm(args.model, tokenizer=tokenizer), tokenizer
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(shared_folder() / "data/tokenizers/llama/tokenizer.model", folder)
        write_json(Path(folder) / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
        tokenizer = load_tokenizer(folder)
    args.vocab_size = len(tokenizer)
    return tiny_llama(args).eval(), tokenizer


def long_shots(exam: str, tokenizer, args: argparse.Namespace) -> list[str]:
    """The first subjects of the exam whose shots have at least --shot_tokens tokens."""
    task = load_task(exam)
    found = []
    paths = {subject: args.data_dir / exam / task.file_name(subject, "dev") for subject in task.names}
    for subject, path in paths.items():
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            text = "\n".join("\n".join(row[:7]) for row in csv.reader(file))
        if len(tokenizer.encode(text)) >= args.shot_tokens:
            found.append(subject)
        if len(found) == args.subjects:
            break
    return found


class CountTokens:
    """Counts the tokens that reach the embedding, pads included."""

    def __init__(self, model) -> None:
        self.tokens = 0
        self._hook = model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module, inputs, output) -> None:
        self.tokens += inputs[0].numel()

    def __enter__(self) -> CountTokens:
        return self

    def __exit__(self, *error) -> None:
        self._hook.remove()


def run_ours(exam: str, subjects: list[str], model, tokenizer, args: argparse.Namespace) -> Run:
    encoder = Encoder(tokenizer, 4096)
    with CountTokens(model) as counter:
        start = time.perf_counter()
        result = evaluate(
            exam,
            LocalModel(ours(model), tokenizer, args.token_budget),
            encoder,
            args.data_dir,
            num_shots=args.shots,
            max_length=4096,
            protocol="harness",
            split=EXAMS[exam][1],
            subjects=subjects,
        )
        seconds = time.perf_counter() - start
    logprobs: dict[tuple[str, int], list[float]] = {}
    for row in result.rows:
        number = sum(subject == row["group"] for subject, _ in logprobs)
        logprobs[row["group"], number] = row["scores"]["acc"]
    return Run(seconds, counter.tokens, logprobs, result.summary["micro"]["value"])


def run_peer(exam: str, subjects: list[str], model, tokenizer, args: argparse.Namespace) -> Run:
    """lm-evaluation-harness with its own templates, on local files in the place of the hub's."""
    with_attention(model, "sdpa")
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size, max_length=4096)
    names = {EXAMS[exam][0].format(subject): subject for subject in subjects}
    manager = task_manager()
    tasks = {
        name: manager._factory.build(
            manager._index[name],
            overrides={"custom_dataset": rows_of(exam, subject, args.data_dir), "num_fewshot": args.shots},
            registry=manager._index,
        )
        for name, subject in names.items()
    }
    with CountTokens(model) as counter:
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # their progress bars
            found = evaluator.evaluate(lm, tasks, log_samples=True, bootstrap_iters=0)
        seconds = time.perf_counter() - start
    logprobs = {
        (names[name], sample["doc_id"]): [float(answer[0]) for answer in sample["filtered_resps"]]
        for name, samples in found["samples"].items()
        for sample in samples
    }
    right = [sample["acc"] for samples in found["samples"].values() for sample in samples]
    return Run(seconds, counter.tokens, logprobs, sum(right) / len(right))


@functools.cache
def task_manager() -> TaskManager:
    """It reads thousands of files."""
    return TaskManager()


def rows_of(exam: str, subject: str, data_dir: Path) -> Callable[..., dict[str, datasets.Dataset]]:
    """The official files as the data sets that the templates expect."""
    task = load_task(exam)

    def read(split: str) -> datasets.Dataset:
        with (data_dir / exam / task.file_name(subject, split)).open(encoding="utf-8-sig", newline="") as file:
            cells = list(csv.reader(file))
        names, rows = (cells[0], cells[1:]) if task.header else (task.columns, cells)
        found = [dict(zip(names, row, strict=True)) for row in rows]
        if exam == "mmlu":
            found = [
                {"question": row["question"], "choices": [row[letter] for letter in "ABCD"],
                 "answer": "ABCD".index(row["answer"])}
                for row in found
            ]  # fmt: skip
        return datasets.Dataset.from_list(found)

    scored = EXAMS[exam][1]
    peers = "test" if exam == "mmlu" else scored  # the split that their template scores
    return lambda **kwargs: {"dev": read("dev"), peers: read(scored)}


def compare(exam: str, own: Run, peer: Run) -> None:
    assert own.logprobs.keys() == peer.logprobs.keys(), "not the same rows"
    largest = max(
        abs(a - b) for key in own.logprobs for a, b in zip(own.logprobs[key], peer.logprobs[key], strict=True)
    )
    print(
        f"{exam}: {len(own.logprobs)} questions, largest difference of a log-likelihood {largest:.1e}, "
        f"accuracy {own.accuracy:.4f} and {peer.accuracy:.4f}"
    )
    assert largest <= TOLERANCE, "log-likelihoods differ"
    assert own.accuracy == peer.accuracy, "accuracies differ"


def time_both(exam: str, subjects: list[str], sides: dict[str, Callable[[], Run]], args) -> dict[str, float]:
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, run in sides.items():
            runs[side].append(run())
    seconds = {side: statistics.median(run.seconds for run in found) for side, found in runs.items()}
    tokens = {side: found[0].tokens for side, found in runs.items()}
    ratio, bound = seconds["peer"] / seconds["ours"], tokens["peer"] / tokens["ours"]
    print(
        f"{exam} ({', '.join(subjects)}): "
        f"ours {seconds['ours']:.2f} s, {tokens['ours']:,} tokens; "
        f"lm-evaluation-harness {seconds['peer']:.2f} s, {tokens['peer']:,} tokens; "
        f"ratio {ratio:.2f}, bound by tokens {bound:.2f}, {ratio / bound:.0%} of it",
        flush=True,
    )
    return {**seconds, "questions": len(runs["ours"][0].logprobs)}


if __name__ == "__main__":
    main()
