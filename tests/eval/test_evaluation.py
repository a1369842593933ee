"""The house of benchmarks: a model that knows scores 1, one that does not scores chance, shots never leak."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from pathlib import Path

import pytest
from char_tokenizer import CHARACTERS, build_char_tokenizer
from exam_takers import Oracle, local
from tiny_models import build_llama

from keju.data_prepare.corpora import idiom as idiom_corpus
from keju.encoding.encoder import Encoder
from keju.eval.benchmark_files import Files
from keju.eval.evaluation import evaluate
from keju.eval.metrics import ChoiceScores, acc, acc_norm, acc_pmi, acc_token, choice_mass, credit, solve_jointly
from keju.eval.prompts import Prompter, pick_shots
from keju.eval.scoring import score_questions
from keju.eval.task import Item, load_task, task_names
from keju.eval.tasks.idiom import PROMPTS
from keju.models.generation import generate_responses

NUM_ITEMS = 24


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build_char_tokenizer(), 256)


def write_rows(path: Path, seed: int, count: int, num_choices: int = 4) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        text = partial(rng.choices, CHARACTERS)
        rows.append(
            {
                "idiom": "".join(text(k=4)),
                "choices": ["".join(text(k=rng.randint(3, 9))) for _ in range(num_choices)],
                "answer": number % num_choices,
            }
        )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return rows


@pytest.fixture
def data_dir(tmp_path) -> Path:
    write_rows(tmp_path / "idiom_mc_test.jsonl", 0, NUM_ITEMS)
    write_rows(tmp_path / "idiom_mc_dev.jsonl", 1, 10)
    return tmp_path


def oracle(data_dir: Path, encoder: Encoder) -> Oracle:
    rows = [json.loads(line) for line in (data_dir / "idiom_mc_test.jsonl").read_text(encoding="utf-8").splitlines()]
    known = {(row["idiom"], row["choices"][row["answer"]]) for row in rows}

    def is_right(text: str) -> bool:
        text = "".join(text.split())
        return any(text.endswith(right) and idiom in text[: -len(right)][-12:] for idiom, right in known)

    return Oracle(encoder, is_right)


settings = dict(num_shots=0, max_length=256)


@pytest.mark.parametrize("num_shots", [0, 3])
@pytest.mark.parametrize("protocol", ["completion", "instruction"])
def test_a_model_that_knows_is_always_right(data_dir, encoder, num_shots, protocol):
    result = evaluate(
        "idiom", oracle(data_dir, encoder), encoder, data_dir, num_shots=num_shots, max_length=256, protocol=protocol
    )
    assert {name: metric["value"] for name, metric in result.summary["metrics"].items()} == {
        "acc": 1.0, "acc_norm": 1.0, "acc_token": 1.0, "acc_pmi": 1.0
    }  # fmt: skip
    assert all(row["pred"] == row["gold"] for row in result.rows)
    assert result.summary["chance"] == 0.25
    assert result.summary["interval"][1] == pytest.approx(1.0)


def test_a_model_that_prefers_nothing_scores_exactly_chance(data_dir, encoder):
    model = build_llama(vocab_size=len(encoder.tokenizer))
    model.lm_head.weight.data.zero_()
    result = evaluate("idiom", local(model, encoder), encoder, data_dir, **settings)
    # All tokens are equally likely: the question adds nothing to any choice, and all characters are worth the same.
    assert result.summary["metrics"]["acc_pmi"]["value"] == pytest.approx(0.25)
    assert result.summary["accuracy"] == pytest.approx(0.25)


def test_the_order_of_choices_changes_nothing(data_dir, encoder, tmp_path):
    model = build_llama(vocab_size=len(encoder.tokenizer))
    score = local(model, encoder)
    first = evaluate("idiom", score, encoder, data_dir, **settings)
    path = data_dir / "idiom_mc_test.jsonl"
    rng = random.Random(3)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        right = row["choices"][row["answer"]]
        rng.shuffle(row["choices"])
        row["answer"] = row["choices"].index(right)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shuffled = evaluate("idiom", score, encoder, data_dir, **settings)
    assert shuffled.summary["metrics"] == first.summary["metrics"]
    chosen = [[row["choices"][row["pred"]] for row in result.rows] for result in (first, shuffled)]
    assert chosen[0] == chosen[1]
    assert len({row["pred"] for row in first.rows}) > 1


def test_rows_hold_what_was_decided(data_dir, encoder):
    model = build_llama(vocab_size=len(encoder.tokenizer))
    score = local(model, encoder)
    result = evaluate("idiom", score, encoder, data_dir, num_shots=2, max_length=256, max_items=5)
    assert len(result.rows) == result.summary["num_items"] == 5
    for row in result.rows:
        assert row["scores"]["acc_norm"] == pytest.approx(
            [value / len(choice) for value, choice in zip(row["scores"]["acc"], row["choices"], strict=True)]
        )
        best = max(range(4), key=lambda index: row["scores"]["acc_pmi"][index])
        assert row["pred"] == best
        assert row["credit"]["acc_pmi"] == float(best == row["gold"])
        assert ":" in row["where"]


def test_pmi_is_the_difference_to_the_neutral_prompt(data_dir, encoder):
    """Each choice alone, in full, under the same shots."""
    model = build_llama(vocab_size=len(encoder.tokenizer))
    score = local(model, encoder)
    result = evaluate("idiom", score, encoder, data_dir, num_shots=2, max_length=256, seed=5)
    task = load_task("idiom")
    files = Files(data_dir)
    items = task.items(files, "completion", "test")
    shots = pick_shots(task.shots(files, "completion"), items, 2, 5)[""]
    prompter = Prompter(encoder, task, "completion", False, 256)
    for item, row in zip(items[:6], result.rows[:6], strict=True):
        (with_idiom, without) = score_questions(
            model, [prompter.question(item, shots)[0], prompter.neutral_question(item, shots)], token_budget=512
        )
        expected = [first - second for first, second in zip(with_idiom, without, strict=True)]
        assert row["scores"]["acc_pmi"] == pytest.approx(expected, abs=1e-4)


def test_pmi_takes_the_shots_that_are_left(data_dir, encoder):
    """Items have room for different numbers of shots; the neutral prompt has those of its item."""
    model = build_llama(vocab_size=len(encoder.tokenizer))
    labels = ["".join(CHARACTERS[start : start + 3]) for start in (0, 5, 9)]
    rows = [{"idiom": "".join(CHARACTERS[: number % 9 + 1]), "choices": labels, "answer": 0} for number in range(12)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data_dir / "idiom_mc_test.jsonl").write_text(text, encoding="utf-8")
    task, files = load_task("idiom"), Files(data_dir)
    items = task.items(files, "completion", "test")
    shots = pick_shots(task.shots(files, "completion"), items, 6, 5)[""]
    whole = [Prompter(encoder, task, "completion", False, 256).question(item, shots)[0] for item in items]
    limit = sorted(len(question.prompt) + max(map(len, question.choices)) for question in whole)[len(whole) // 2] - 1
    prompter = Prompter(encoder, task, "completion", False, limit)
    result = evaluate("idiom", local(model, encoder), encoder, data_dir, num_shots=6, max_length=limit, seed=5)
    seen = set()
    for item, row in zip(items, result.rows, strict=True):
        question, dropped = prompter.question(item, shots)
        seen.add(dropped)
        asked = [question, prompter.neutral_question(item, shots[dropped:])]
        with_idiom, without = score_questions(model, asked, token_budget=512)
        expected = [first - second for first, second in zip(with_idiom, without, strict=True)]
        assert row["scores"]["acc_pmi"] == pytest.approx(expected, abs=1e-4)
    assert len(seen) > 1


def test_ties_share_the_credit():
    assert credit([-1.0, -1.0, -2.0], 1) == 0.5
    assert credit([-1.0, -1.0, -2.0], 2) == 0.0
    assert credit([-3.0, -1.0, -2.0], 1) == 1.0


def test_metrics_by_hand():
    scores = ChoiceScores((-6.0, -8.0, -9.0), (-5.0, -9.0, -9.0), (2, 4, 3), (1, 4, 2))
    assert acc(scores) == [-6.0, -8.0, -9.0]
    assert acc_norm(scores) == [-3.0, -2.0, -3.0]
    assert acc_token(scores) == [-6.0, -2.0, -4.5]
    assert acc_pmi(scores) == [-1.0, 1.0, 0.0]
    assert acc_pmi(ChoiceScores((-6.0,), None, (2,), (1,))) is None


def test_passages_are_solved_by_the_highest_sum():
    # Alone both questions would choose 0; together 0 and 1 give 1 + 5, 1 and 0 give 0 + 8.
    assert solve_jointly({"p": [[1.0, 0.0, -9.0], [8.0, 5.0, -9.0]]}) == {"p": [1, 0]}
    assert solve_jointly({"p": [[1.0, 0.0], [8.0, 5.0], [0.0, 2.0]]}) == {"p": [0, 0, 1]}  # too few choices


def test_equal_sums_are_drawn_and_not_decided_by_the_order_of_choices():
    names = [f"p{number}" for number in range(60)]
    solved = solve_jointly({name: [[0.0, 0.0, 0.0]] for name in names})
    assert solved == solve_jointly({name: [[0.0, 0.0, 0.0]] for name in names[::-1]})
    assert {answer for (answer,) in solved.values()} == {0, 1, 2}


def test_the_mass_of_choices():
    assert choice_mass([math.log(0.2), math.log(0.3)]) == pytest.approx(0.5)
    assert choice_mass([math.log(0.8), math.log(0.7)]) == 1.0  # one begins the other


def test_shots_are_fixed_by_the_seed_and_never_scored_rows():
    scored = [Item(f"问{number}", ("是", "否"), 0) for number in range(10)]
    pool = [*scored, *(Item(f"例{number}", ("是", "否"), 1) for number in range(8)), Item("例", ("是", "否"), None)]
    first = pick_shots(pool, scored, 5, seed=1)[""]
    assert first == pick_shots(pool, scored, 5, seed=1)[""] != pick_shots(pool, scored, 5, seed=2)[""]
    assert all(shot.prompt.startswith("例") and shot.gold is not None for shot in first)
    with pytest.raises(ValueError, match="num_shots: 9: there are only 8 examples"):
        pick_shots(pool, scored, 9, seed=1)


def test_shots_that_a_benchmark_has_chosen_stay():
    """The first of the pool in their order; one that is also scored is shown all the same, and counted elsewhere."""
    scored = [Item(f"问{number}", ("是", "否"), 0) for number in range(10)]
    pool = [Item("例1", ("是", "否"), 1), scored[3], Item("例2", ("是", "否"), 1), Item("例3", ("是", "否"), 1)]
    assert pick_shots(pool, scored, 3, seed=1, first=True)[""] == pool[:3]
    assert scored[3] not in pick_shots(pool, scored, 3, seed=1)[""]


def test_shots_are_dropped_whole_from_the_far_end(data_dir, encoder):
    task = load_task("idiom")
    files = Files(data_dir)
    items = task.items(files, "completion", "test")
    shots = pick_shots(task.shots(files, "completion"), items, 4, 0)[""]
    prompter = Prompter(encoder, task, "completion", False, 256)
    whole, dropped = prompter.question(items[0], shots)
    assert dropped == 0
    longest = len(whole.prompt) + max(map(len, whole.choices))
    assert Prompter(encoder, task, "completion", False, longest).question(items[0], shots) == (whole, 0)
    shorter, dropped = Prompter(encoder, task, "completion", False, longest - 1).question(items[0], shots)
    assert dropped == 1
    assert shorter == prompter.question(items[0], shots[1:])[0]
    with pytest.raises(
        ValueError, match=r"idiom_mc_test.jsonl:1: \d+ tokens without any shot, the model reads 8 at most"
    ):
        Prompter(encoder, task, "completion", False, 8).question(items[0], shots)


def test_dropped_shots_are_reported(data_dir, encoder):
    score = local(build_llama(vocab_size=len(encoder.tokenizer)), encoder)
    result = evaluate("idiom", score, encoder, data_dir, num_shots=6, max_length=90)
    assert result.summary["items_with_shots_dropped"] == NUM_ITEMS
    assert result.summary["shots_dropped"] >= NUM_ITEMS


def test_a_passage_is_answered_as_a_whole(tmp_path, encoder):
    """The answer of each blank in the predictions is that of the solved passage, not the best one by itself."""
    from keju.eval.local_model import LocalModel

    row = {"candidates": ["甲", "乙"], "content": ["丙#idiom000001#", "丁#idiom000002#"]}
    (tmp_path / "dev.json").write_text(json.dumps(row), encoding="utf-8")
    (tmp_path / "dev_answer.json").write_text('{"#idiom000001#": 1, "#idiom000002#": 0}', encoding="utf-8")

    class Sure(LocalModel):
        def score(self, questions, on_batch):
            scores = [[1.0, 0.0], [8.0, 5.0]]
            on_batch(dict(enumerate(scores)), 0)
            return scores

    result = evaluate("chid", Sure(None, None), encoder, tmp_path, **settings)
    assert [row["pred"] for row in result.rows] == [1, 0] and result.summary["accuracy"] == 1.0
    assert result.summary["metrics"]["acc"]["value"] == 0.5
    alone = evaluate("chid", Sure(None, None), encoder, tmp_path, protocol="pangu", **settings)
    assert [row["pred"] for row in alone.rows] == [0, 0] and alone.summary["accuracy"] == 0.5


def test_an_answer_is_written_to_the_end_of_its_first_line(encoder):
    """The head is changed so that the model writes a line break in the middle of what it would write."""
    newline = encoder.tokenizer.convert_tokens_to_ids("\n")
    prompts = [encoder.prefix_ids(text) for text in (CHARACTERS[3], "".join(CHARACTERS[10:19]))]
    model = build_llama(vocab_size=len(encoder.tokenizer), tie_word_embeddings=False)
    settings = {"max_new_tokens": 12, "do_sample": False}

    def full() -> list[str]:
        made = generate_responses(model, encoder.tokenizer, prompts, **settings)
        return [encoder.tokenizer.decode(response.ids, skip_special_tokens=True) for (response,) in made]

    (first,), _ = generate_responses(model, encoder.tokenizer, prompts, **settings)
    head = model.lm_head.weight.data
    head[[newline, first.ids[5]]] = head[[first.ids[5], newline]]
    whole = full()
    assert any("\n" in text.strip() for text in whole)
    written = local(model, encoder).write(prompts, 12, lambda done, tokens: None)
    assert [text.lstrip().split("\n")[0] for text in written] == [text.lstrip().split("\n")[0] for text in whole]
    assert len(written[0].strip("\n")) < len(whole[0].strip("\n"))  # and not much further


def test_a_wrong_task_lists_the_right_ones():
    assert "idiom" in task_names()
    with pytest.raises(ValueError, match="tasks: idoim: choose from .*idiom"):
        load_task("idoim")


def test_a_wrong_protocol_lists_the_right_ones(data_dir, encoder):
    with pytest.raises(ValueError, match="protocol: official: idiom knows completion, instruction"):
        evaluate("idiom", oracle(data_dir, encoder), encoder, data_dir, protocol="official", **settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"idiom": "好"', "malformed JSON"),
        ('["好"]', "expected a JSON object"),
        ('{"idiom": "", "choices": ["a", "b"], "answer": 0}', '"idiom" must be a text'),
        ('{"idiom": "好", "choices": ["a", ""], "answer": 0}', '"choices" must be a list'),
        ('{"idiom": "好", "choices": ["a"], "answer": 0}', '"choices" must be a list'),
        ('{"idiom": "好", "choices": ["a", "b"], "answer": 2}', '"answer" must be the number of a choice, 0 to 1'),
        ('{"idiom": "好", "choices": ["a", "b"], "answer": "A"}', '"answer" must be the number of a choice'),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, line, message):
    good = '{"idiom": "好", "choices": ["a", "b"], "answer": 1}\n'
    (tmp_path / "idiom_mc_test.jsonl").write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"idiom_mc_test.jsonl:2: {message}"):
        load_task("idiom").items(Files(tmp_path), "completion", "test")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="^data_dir: .*idiom_mc_test.jsonl does not exist"):
        load_task("idiom").items(Files(tmp_path), "completion", "test")


def test_the_idiom_prompts_are_worded_like_the_training_files():
    files = idiom_corpus.build(seed=0, max_items=150, track=lambda items, label: items).files
    texts = "\n".join(row["text"] for row in files["pretrain_train.jsonl"])
    completion, instruction = (PROMPTS[name][0] for name in ("completion", "instruction"))
    rows = files["ranked_train.jsonl"]
    assert all(row["prompt"] == instruction.format(row["idiom"]) for row in rows)
    read = [completion.format(row["idiom"]) + row["answers"][0]["answer"] in texts for row in rows]
    assert sum(read) > len(rows) / 5
