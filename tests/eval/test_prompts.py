"""What a model reads: official prompts letter by letter, filled templates token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from exam_takers import local
from tiny_models import build_llama

from keju.encoding.encoder import Encoder
from keju.eval.benchmark_files import Row
from keju.eval.evaluation import evaluate
from keju.eval.prompts import NoRoom, Prompter
from keju.eval.scoring import score_questions
from keju.eval.task import Item, load_task

CEVAL = {"id": "0", "question": " 1+1=? ", "A": "1", "B": "2", "C": "None", "D": "4", "answer": "B"}
CMMLU = {"Question": "1+1=?", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "B"}
MMLU = {"question": "1+1=?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"}
OPTIONS = "\nA. 1\nB. 2\nC. 3\nD. 4\n"
# (task, protocol, subject, fields) -> the whole prompt with one shot (the same row), and the four choices
PROMPTS = [
    (
        ("ceval", "official", "law", CEVAL),
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
        " 1+1=? \nA. 1\nB. 2\nC. None\nD. 4\n答案：B\n\n 1+1=? \nA. 1\nB. 2\nC. None\nD. 4\n答案：",
        ("A", "B", "C", "D"),
    ),
    (
        ("ceval", "harness", "law", CEVAL),
        "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
        "1+1=?\nA. 1\nB. 2\nC. None\nD. 4\n答案： B\n\n1+1=?\nA. 1\nB. 2\nC. None\nD. 4\n答案：",
        (" A", " B", " C", " D"),
    ),
    (
        ("mmlu", "official", "abstract_algebra", MMLU),
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
        f"1+1=?{OPTIONS}Answer: B\n\n1+1=?{OPTIONS}Answer:",
        (" A", " B", " C", " D"),
    ),
    (
        ("mmlu", "harness", "abstract_algebra", MMLU),
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        f"1+1=?{OPTIONS}Answer: B\n\n1+1=?{OPTIONS}Answer:",
        (" A", " B", " C", " D"),
    ),
    (
        ("cmmlu", "official", "agronomy", CMMLU),
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"
        f"题目：1+1=?{OPTIONS}答案是：B\n\n题目：1+1=?{OPTIONS}答案是：",
        ("A", "B", "C", "D"),
    ),
    (
        ("cmmlu", "harness", "agronomy", CMMLU),
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"
        f"1+1=?{OPTIONS}答案： B\n\n1+1=?{OPTIONS}答案：",
        (" A", " B", " C", " D"),
    ),
]  # fmt: skip
TEMPLATE = "".join(dict.fromkeys("甲乙丙丁戊己庚辛：，。\n" + "".join(text for _, text, _ in PROMPTS)))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build_char_tokenizer(TEMPLATE), 4096)


def decoded(encoder: Encoder, ids) -> str:
    return "".join(encoder.tokenizer.convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize(("asked", "prompt", "choices"), PROMPTS)
def test_prompts_of_examinations_are_the_published_ones(encoder, asked, prompt, choices):
    name, protocol, subject, fields = asked
    task = load_task(name)
    item = replace(task.item(Row("x:1", fields, subject), protocol), group=subject)
    assert item.choices[item.gold].strip() == "B"
    question, dropped = Prompter(encoder, task, protocol, False, 4096).question(item, [item])
    assert decoded(encoder, question.prompt) == "<s>" + prompt and dropped == 0
    assert tuple(decoded(encoder, choice) for choice in question.choices) == choices


def test_a_conversation_has_the_instruction_shots_and_question_as_turns(encoder):
    task = load_task("ceval")
    item = replace(task.item(Row("x:1", {**CEVAL, "question": "甲"}, "law"), "harness"), group="law")
    encoder.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    try:
        chat = Encoder(encoder.tokenizer, 4096)
        question, _ = Prompter(chat, task, "harness", True, 4096).question(item, [item])
        text = decoded(chat, question.prompt)
        turn = "甲\nA. 1\nB. 2\nC. None\nD. 4\n答案："
        header = "以下是中国关于法学的单项选择题，请选出其中的正确答案。"
        assert text.removeprefix("<s>") == f"s{header}</s>u{turn}</s>aB</s>u{turn}</s>a"
        # No blank in front of a letter: it stood between question and letter, which are turns now.
        assert [decoded(chat, choice) for choice in question.choices] == ["A", "B", "C", "D"]
    finally:
        encoder.tokenizer.chat_template = None


def template(before: str, choices: tuple[str, ...], after: str) -> Item:
    return Item(before, choices, 0, after=after, where="x:1")


def test_a_template_is_scored_from_its_first_token_to_its_last(encoder):
    """All of it but shots, whatever the choices have in common."""
    model = build_llama(vocab_size=len(encoder.tokenizer))
    prompter = Prompter(encoder, load_task("tnews"), "pangu", False, 4096)
    shot = template("甲乙", ("丙", "丁"), "戊")
    for item in (
        template("甲乙", ("丙丁", "丙己", "庚"), "辛甲"),
        template("", ("丙丁", "己"), "辛甲"),
        template("甲", ("丙", "丙丁"), ""),
    ):
        for shots in ([], [shot, shot]):
            question, _ = prompter.question(item, shots)
            (sums,) = score_questions(model, [question], token_budget=512)
            head = encoder.prefix_ids("".join(f"{each.solved}\n" for each in shots))
            for choice, got, tokens in zip(item.choices, sums, question.choices, strict=True):
                row = encoder.prefix_ids(
                    "".join(f"{each.solved}\n" for each in shots) + item.prompt + choice + item.after
                )
                with torch.no_grad():
                    logprobs = model(torch.tensor([row])).logits[0].log_softmax(-1)
                expected = sum(logprobs[place - 1, row[place]].item() for place in range(len(head), len(row)))
                assert got == pytest.approx(expected, abs=1e-4)
                assert question.num_scored + len(tokens) == len(row) - len(head)


@pytest.mark.parametrize("has_begin", [True, False])
def test_something_predicts_the_first_token(has_begin):
    """The begin token, which this tokenizer does not write itself; or where it has none, the end token."""
    from tokenizers import processors

    tokenizer = build_char_tokenizer(TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    if not has_begin:
        tokenizer.bos_token = None
    bare = Encoder(tokenizer, 4096)
    assert bare.prefix_ids("") == []
    item = template("", ("丙", "丁"), "甲")
    question, _ = Prompter(bare, load_task("tnews"), "pangu", False, 4096).question(item, [])
    assert decoded(bare, question.prompt) == ("<s>" if has_begin else "</s>")
    assert [decoded(bare, choice) for choice in question.choices] == ["丙甲", "丁甲"]


def test_shots_are_left_out_of_templates_whole(encoder):
    prompter = Prompter(encoder, load_task("tnews"), "pangu", False, 9)
    item = template("甲", ("丙", "丁"), "戊")
    shots = [template("己", ("庚",), "辛"), template("乙", ("庚",), "辛")]
    question, dropped = prompter.question(item, shots)
    assert dropped == 1 and decoded(encoder, question.prompt) == "<s>乙庚辛\n甲"
    with pytest.raises(NoRoom, match="x:1: 4 tokens without any shot, the model reads 3 at most"):
        Prompter(encoder, load_task("tnews"), "pangu", False, 3).question(item, shots)


def test_templates_have_no_turns(encoder, tmp_path):
    model = local(build_llama(vocab_size=len(encoder.tokenizer)), encoder)
    with pytest.raises(ValueError, match="^apply_chat_template: tnews pangu scores a filled template"):
        evaluate(
            "tnews", model, encoder, tmp_path, num_shots=0, max_length=99, protocol="pangu", apply_chat_template=True
        )
