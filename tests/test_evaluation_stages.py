"""The stages that measure, from their command lines: what they write, in which order, and how they refuse."""

from __future__ import annotations

import gzip
import json
import random
import sys

import pytest
import torch
import zstandard
from char_tokenizer import CHARACTERS, build_char_tokenizer
from tiny_models import build_llama, build_scalar_model

from keju import eval_pretrain, eval_report, eval_reward, pred_pretrain, pred_reward
from keju.eval.local_model import LocalModel
from keju.records.writing import write_jsonl
from keju.training.launch import run_guarded

NUM_ROWS = 9


def text(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(CHARACTERS, k=length))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, a reward model and data, with prompts and answers of all lengths."""
    folder = tmp_path_factory.mktemp("measure")
    tokenizer = build_char_tokenizer()
    model = build_llama(vocab_size=len(tokenizer))
    for name, saved in (("lm", model), ("reward", build_scalar_model(model))):
        saved.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    ranked = [
        {
            "prompt": text(rng, rng.randint(1, 30)),
            "answers": [{"answer": text(rng, rng.randint(1, 20)), "score": score} for score in (1, 0, 0, -1)],
        }
        for _ in range(NUM_ROWS)
    ]
    write_jsonl(folder / "ranked_test.jsonl", ranked)
    for name in ("test", "dev"):
        rows = [
            {"idiom": text(rng, 4), "choices": [text(rng, rng.randint(3, 9)) for _ in range(4)], "answer": number % 4}
            for number in range(NUM_ROWS)
        ]
        write_jsonl(folder / f"idiom_mc_{name}.jsonl", rows)
    return folder


def run(monkeypatch, stage, folder, model, output, *flags) -> int:
    flags = ["--model_name_or_path", folder / model, "--data_dir", folder, "--output_dir", output, *flags]
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    return run_guarded(stage.main)


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_eval_pretrain(folder, tmp_path, monkeypatch):
    out = tmp_path / "eval"
    flags = ["--num_shots", 0, 2, "--protocol", "completion", "instruction", "--token_budget", 300]
    assert run(monkeypatch, eval_pretrain, folder, "lm", out, *flags) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]
    assert [(row["protocol"], row["num_shots"]) for row in results] == [
        ("completion", 0), ("completion", 2), ("instruction", 0), ("instruction", 2)
    ]  # fmt: skip
    for row in results:
        rows = rows_of(out / f"predictions_idiom_{row['protocol']}_{row['num_shots']}shot.jsonl")
        assert len(rows) == row["num_items"] == NUM_ROWS
        assert row["accuracy"] == pytest.approx(sum(item["pred"] == item["gold"] for item in rows) / NUM_ROWS)
    assert (out / "accuracy.png").stat().st_size > 1000
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["accuracy"]["idiom_completion_0shot"] == results[0]["accuracy"] and summary["chance"] == 0.25


def exam(folder, splits=("val", "dev", "test")) -> None:
    """Two subjects of C-Eval in the characters of the tokenizer."""
    rng = random.Random(1)
    for split in splits:
        (folder / "ceval" / split).mkdir(parents=True, exist_ok=True)
        for subject in ("law", "logic"):
            rows = [
                ",".join(
                    [str(n), *(text(rng, k) for k in (9, 2, 2, 2, 2)), *(["ABCD"[n % 4]] if split != "test" else [])]
                )
                for n in range(6)
            ]
            header = "id,question,A,B,C,D" + ("" if split == "test" else ",answer")
            path = folder / f"ceval/{split}/{subject}_{split}.csv"
            path.write_text("\n".join([header, *rows]), encoding="utf-8")


def test_an_examination_by_subjects_with_a_report(folder, tmp_path, monkeypatch, capsys):
    exam(folder)
    out = tmp_path / "exam"
    flags = ["--tasks", "ceval,idiom", "--num_shots", 2, "--protocol", "harness", "completion", "--on_bad_row", "skip"]
    assert run(monkeypatch, eval_pretrain, folder, "lm", out, *flags) == 0
    first, second = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]
    assert (first["task"], second["task"]) == ("ceval", "idiom")
    assert first["num_items"] == 12 and first["num_skipped"] == 50
    assert first["accuracy"] == first["micro"]["value"] and set(first["subjects"]) == {"law", "logic"}
    captured = capsys.readouterr()
    assert "ceval_harness_2shot: 50 rows were not scored, such as /" in captured.err
    assert "the choices have" in captured.err  # a model with random weights expects no letter
    page, table = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert page.count("<svg") == 2 and "Humanities" in page and "logic" in page
    assert "| ceval | harness | 2 | 12 | accuracy |" in table and "| Humanities |" in table


def test_remarks_name_what_a_reader_must_know():
    summary = {"task": "mmlu", "protocol": "official", "num_shots": 5, "num_items": 9, "scored": "letter"}
    quiet = dict.fromkeys(("shots_dropped", "items_among_shots", "num_skipped", "num_shots_skipped"), 0)
    assert eval_pretrain.remarks({**summary, **quiet, "choice_mass": 0.1}, 512) == []
    loud = {
        "shots_dropped": 7,
        "items_with_shots_dropped": 3,
        "items_among_shots": 1,
        "num_skipped": 2,
        "choice_mass": 0.09,
    }
    loud |= {"skipped": ["a:1: x", "b:2: y"], "num_shots_skipped": 4, "shots_skipped": ["c:3: z"]}
    lines = eval_pretrain.remarks({**summary, **loud}, 512)
    assert all(line.startswith("mmlu_official_5shot: ") for line in lines)
    for part, line in zip(
        (
            "3 of 9 prompts had no room for all 5 shots in 512 tokens; 7 shots were left out",
            "1 questions also stand among their shots",
            "2 rows were not scored, such as a:1: x",
            "4 rows are no shots, such as c:3: z",
            "the choices have 9.00% of the probability",
        ),
        lines,
        strict=True,
    ):
        assert part in line


def test_test_questions_become_a_submission(folder, tmp_path, monkeypatch):
    exam(folder)
    out = tmp_path / "exam"
    flags = ["--tasks", "ceval", "--subjects", "law", "logic", "--split", "test"]
    assert run(monkeypatch, eval_pretrain, folder, "lm", out, *flags) == 0
    submission = json.loads((out / "submission_ceval_official_0shot.json").read_text(encoding="utf-8"))
    rows = rows_of(out / "predictions_ceval_official_0shot.jsonl")
    assert submission == {
        subject: {row["key"]: "ABCD"[row["pred"]] for row in rows if row["group"] == subject}
        for subject in ("law", "logic")
    }
    assert len(rows) == 12 and not (out / "accuracy.png").exists() and (out / "report.html").exists()


def test_an_interrupted_evaluation_goes_on_with_the_same_command(folder, tmp_path, monkeypatch, capsys):
    """Stopped in the middle as by Ctrl-C; what had been scored is not scored again, and the results are the same."""
    flags = ["--num_shots", 0, 2, "--token_budget", 200]
    assert run(monkeypatch, eval_pretrain, folder, "lm", tmp_path / "whole", *flags) == 0
    out = tmp_path / "broken"
    score, calls = LocalModel.score, []

    def interrupted(self, questions, on_batch):
        def stop(done, tokens):
            on_batch(done, tokens)
            calls.append(len(done))
            if len(calls) == 3:
                raise KeyboardInterrupt

        return score(self, questions, stop)

    monkeypatch.setattr(LocalModel, "score", interrupted)
    assert run(monkeypatch, eval_pretrain, folder, "lm", out, *flags) == 130
    kept = len(rows_of(out / "scores.jsonl")) - 1
    assert kept == sum(calls) > 0
    monkeypatch.setattr(LocalModel, "score", score)
    # Another precision is another model; how much is computed at once, and what else is asked, matters not.
    assert run(monkeypatch, eval_pretrain, folder, "lm", out, *flags, "--dtype", "bfloat16") == 2
    assert "already holds an unfinished run" in capsys.readouterr().err
    assert run(monkeypatch, eval_pretrain, folder, "lm", out, *flags[:-1], 300) == 0
    assert "going on with it" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["num_recalled"] == kept
    for name in ("predictions_idiom_completion_0shot.jsonl", "predictions_idiom_completion_2shot.jsonl"):
        whole, broken = rows_of(tmp_path / "whole" / name), rows_of(out / name)
        assert [row["pred"] for row in whole] == [row["pred"] for row in broken]
        for a, b in zip(whole, broken, strict=True):
            assert a["scores"]["acc"] == pytest.approx(b["scores"]["acc"], abs=1e-5)
    assert run(monkeypatch, eval_pretrain, folder, "lm", out, *flags) == 2
    assert "already holds a finished run" in capsys.readouterr().err


def test_several_models_in_one_table(folder, tmp_path, monkeypatch, capsys):
    for name, flags in (("a", ["--max_items", 5]), ("b", ["--num_shots", 0, 1])):
        assert run(monkeypatch, eval_pretrain, folder, "lm", tmp_path / name, *flags) == 0
    monkeypatch.setattr(
        sys, "argv", ["x", "--runs", str(tmp_path / "a"), str(tmp_path / "b"), "--output_dir", str(tmp_path / "both")]
    )
    assert run_guarded(eval_report.main) == 0
    table = (tmp_path / "both/report.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    # Two runs of one model are told apart by their folders.
    assert f"| {tmp_path / 'a'} | {tmp_path / 'b'} |" in table
    lines = [line for line in table.splitlines() if line.startswith("| idiom")]
    assert [line.split("|")[4].strip() for line in lines] == ["5 / 9", "9"] and "| – |" in lines[1]
    assert "Not the same questions, seeds or versions in all columns: idiom completion 0-shot." in table
    assert "idiom completion 0-shot" in (tmp_path / "both/report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["x", "--runs", str(folder), "--output_dir", str(tmp_path / "none")])
    assert run_guarded(eval_report.main) == 2
    assert "no results.json of an evaluation" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("stage", [eval_pretrain, pred_pretrain])
def test_a_named_size_has_the_weights_of_its_seed(folder, tmp_path, monkeypatch, stage):
    flags = ["--tokenizer_name", folder / "lm", "--model_name_or_path", "llama-tiny"]
    flags += ["--max_items", 5] if stage is eval_pretrain else ["--max_new_tokens", 4]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(1)
        assert run(monkeypatch, stage, folder, "", tmp_path / name, "--seed", seed, *flags) == 0
    a, b, c = (
        [rows_of(path) for path in sorted((tmp_path / name).glob("predictions*.jsonl"))] for name in ("a", "b", "c")
    )
    assert a == b != c


def test_pred_pretrain_keeps_the_order_of_its_input(folder, tmp_path, monkeypatch):
    outputs = []
    for batch_size in (1, 4):
        out = tmp_path / f"pred{batch_size}"
        flags = ["--max_new_tokens", 12, "--batch_size", batch_size]
        assert run(monkeypatch, pred_pretrain, folder, "lm", out, *flags) == 0
        outputs.append(rows_of(out / "predictions.jsonl"))
    assert outputs[0] == outputs[1]
    asked = [row["prompt"] for row in rows_of(folder / "ranked_test.jsonl")]
    assert [row["prompt"][-1]["content"] for row in outputs[0]] == asked
    best = [row["answers"][0]["answer"] for row in rows_of(folder / "ranked_test.jsonl")]
    assert [row["reference"] for row in outputs[0]] == best
    figures = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert figures["num_responses"] == NUM_ROWS
    assert {"rouge_1", "rouge_2", "rouge_l", "bleu", "distinct_1", "distinct_2", "length"} <= figures.keys()


def test_pred_pretrain_samples_and_takes_texts(folder, tmp_path, monkeypatch):
    write_jsonl(folder / "texts.jsonl", [{"prompt": CHARACTERS[0] * 3}, {"prompt": CHARACTERS[1] * 5}])
    flags = ["--test_filename", "texts.jsonl", "--temperature", 1, "--num_return_sequences", 3, "--max_new_tokens", 8]
    assert run(monkeypatch, pred_pretrain, folder, "lm", tmp_path / "out", *flags) == 0
    rows = rows_of(tmp_path / "out" / "predictions.jsonl")
    assert [len(row["responses"]) for row in rows] == [3, 3]
    assert rows[0]["reference"] is None
    assert "bleu" not in json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))


def test_a_prompt_without_room_is_refused_or_cut(folder, tmp_path, monkeypatch, capsys):
    long = ["--max_new_tokens", 250]
    assert run(monkeypatch, pred_pretrain, folder, "lm", tmp_path / "out", *long) == 2
    assert "ranked_test.jsonl:" in (error := capsys.readouterr().err) and "--max_new_tokens" in error
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, pred_pretrain, folder, "lm", tmp_path / "out", *long, "--on_long", "truncate") == 0


def one_by_one_reward(folder, prompt: str, answer: str) -> float:
    """A single row through the model's own forward: prompt, newline, answer, end."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    tokenizer = build_char_tokenizer()
    ids = tokenizer.encode(prompt + "\n" + answer) + [tokenizer.eos_token_id]
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


def test_rewards_equal_single_rows_in_every_format(folder, tmp_path, monkeypatch):
    ranked = rows_of(folder / "ranked_test.jsonl")
    prompt, answers = ranked[0]["prompt"], [answer["answer"] for answer in ranked[0]["answers"]]
    rows = [
        {"prompt": prompt, "answer": answers[0], "id": 7},
        ranked[1],
        {"prompt": [{"role": "user", "content": prompt}], "responses": [answers[1], ""], "finished": [True, True]},
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answers[2]}]},
        {"prompt": prompt, "chosen": answers[3], "rejected": answers[0]},
    ]
    write_jsonl(folder / "mixed.jsonl", rows)
    flags = ["--test_filename", "mixed.jsonl", "--token_budget", 120]
    assert run(monkeypatch, pred_reward, folder, "reward", tmp_path / "out", *flags) == 0
    scored = rows_of(tmp_path / "out" / "rewards.jsonl")
    assert [{name: value for name, value in row.items() if name != "rewards"} for row in scored] == rows
    expected = {answer: one_by_one_reward(folder, prompt, answer) for answer in (*answers, "")}
    assert scored[0]["rewards"] == pytest.approx([expected[answers[0]]], abs=1e-5)
    assert scored[2]["rewards"] == pytest.approx([expected[answers[1]], expected[""]], abs=1e-5)
    assert scored[3]["rewards"] == pytest.approx([expected[answers[2]]], abs=1e-5)
    assert scored[4]["rewards"] == pytest.approx([expected[answers[3]], expected[answers[0]]], abs=1e-5)
    assert len(scored[1]["rewards"]) == 4


@pytest.mark.parametrize("kind", ["zst", "gz", "shards"])
def test_rewards_of_compressed_and_sharded_records(folder, tmp_path, monkeypatch, kind):
    rows, data = rows_of(folder / "ranked_test.jsonl")[:4], tmp_path / "data"
    assert (
        run(monkeypatch, pred_reward, folder, "reward", tmp_path / "plain", "--test_filename", "ranked_test.jsonl") == 0
    )
    if kind == "shards":
        for number in range(2):
            write_jsonl(data / f"ranked_test-0000{number + 1}-of-00002.jsonl", rows[2 * number : 2 * number + 2])
    else:
        write_jsonl(data / "ranked_test.jsonl", rows)
        plain = (data / "ranked_test.jsonl").read_bytes()
        packed = gzip.compress(plain) if kind == "gz" else zstandard.compress(plain)
        (data / f"ranked_test.jsonl.{kind}").write_bytes(packed)
        (data / "ranked_test.jsonl").unlink()
    for stage in (pred_reward, eval_reward):
        out = tmp_path / stage.__name__
        assert run(monkeypatch, stage, folder, "reward", out, "--data_dir", data) == 0
        found = [row["rewards"] for row in rows_of(out / "rewards.jsonl")]
        expected = [row["rewards"] for row in rows_of(tmp_path / "plain" / "rewards.jsonl")][:4]
        assert [number for row in found for number in row] == pytest.approx(
            [number for row in expected for number in row], abs=1e-5
        )


def test_eval_reward(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run(monkeypatch, eval_reward, folder, "reward", out) == 0
    figures = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert figures["num_pairs"] == NUM_ROWS * 5 and figures["num_prompts"] == NUM_ROWS
    rewards = rows_of(out / "rewards.jsonl")
    ranked = rows_of(folder / "ranked_test.jsonl")[0]
    first = one_by_one_reward(folder, ranked["prompt"], ranked["answers"][0]["answer"])
    assert rewards[0]["rewards"][0] == pytest.approx(first, abs=1e-5)
    assert (out / "reward_distribution.png").exists() and (out / "margins.png").exists()
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["heldout_accuracy"] == figures["accuracy"]


@pytest.mark.parametrize(
    ("stage", "model", "flags", "message"),
    [
        (eval_pretrain, "lm", ["--tasks", "idoim"], "--tasks: idoim: choose from afqmc"),
        (eval_pretrain, "lm", ["--protocol", "official"], "--protocol official: idiom knows completion"),
        (eval_pretrain, "lm", ["--protocol", "completion", "x"], "--protocol x: idiom knows completion, instruction"),
        (eval_pretrain, "lm", ["--split", "val"], "--split val: idiom knows test"),
        (eval_pretrain, "lm", ["--server_url", "127.0.0.1:8000"], "--server_url: 127.0.0.1:8000: expected something"),
        (
            eval_pretrain,
            "lm",
            ["--server_url", "http://127.0.0.1:9/v1"],
            "--tokenizer_name is needed with --server_url",
        ),
        (eval_pretrain, "lm", ["--num_shots", "99"], "--num_shots: 99: there are only 9 examples"),
        (eval_pretrain, "lm", ["--num_shots", "-1"], "--num_shots: must be at least 0"),
        (eval_pretrain, "lm", ["--max_length", "9999"], "--max_length 9999: the model has 256 positions"),
        (eval_pretrain, "lm", ["--token_budget", "10"], "--token_budget: 10: a question takes"),
        (eval_pretrain, "lm", ["--max_length", "12"], "idiom_mc_test.jsonl:1: "),
        (eval_pretrain, "absent", [], "--model_name_or_path"),
        (eval_reward, "lm", [], "is not a reward model"),
        (eval_reward, "reward", ["--test_filename", "absent.jsonl"], "absent.jsonl: no such file"),
        (pred_reward, "reward", ["--test_filename", "idiom_mc_test.jsonl"], "idiom_mc_test.jsonl:1: "),
        (pred_reward, "reward", ["--max_length", "5"], "ranked_test.jsonl:1: "),
        (pred_pretrain, "lm", ["--num_return_sequences", "2"], "--num_return_sequences: 2: without sampling"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, tmp_path, monkeypatch, capsys, stage, model, flags, message):
    assert run(monkeypatch, stage, folder, model, tmp_path / "out", *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Value"))]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()
