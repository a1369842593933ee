"""GLM and ChatGLM-6B are examined through their mask token, as they were trained."""

from __future__ import annotations

import pytest
import sentencepiece
import torch
from benchmark_slices import EXAMS, write_slices
from exam_takers import local
from tiny_models import build, row_inputs

from keju.data_prepare.vocabulary import train_sentencepiece
from keju.encoding.encoder import Encoder
from keju.eval.evaluation import evaluate
from keju.eval.prompts import Prompter
from keju.eval.scoring import score_questions
from keju.eval.task import Item, expand_tasks, load_task
from keju.prepare_data import save_family_tokenizer

TEXTS = ["这是关于财经的文章:农业故事文化娱乐体育，下面两个句子语义不同相同。", "摘要关键词真实一二三四五六。"] * 20
CONFIGS = {"glm": {"tokenizer_class": "GLMChineseTokenizer"},
           "chatglm": {"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0}}  # fmt: skip
ITEM = Item("这是关于", ("财经", "农业", "故事文化"), 1, after="的文章:一二三", where="x:1")


@pytest.fixture(scope="module", params=CONFIGS)
def taker(request, tmp_path_factory):
    """(encoder, model) of a family with a vocabulary of its own."""
    from transformers import AutoTokenizer

    vocabulary = train_sentencepiece(TEXTS, 400)
    assert sentencepiece.SentencePieceProcessor(model_proto=vocabulary).get_piece_size() > 256
    folder = tmp_path_factory.mktemp(request.param)
    save_family_tokenizer(vocabulary, CONFIGS[request.param], folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids = {"sop_token_id": tokenizer.sop_token_id, "eop_token_id": tokenizer.eop_token_id}
    if request.param == "glm":
        ids |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("mask", "smask", "gmask")}
    else:
        ids = {"bos_token_id": tokenizer.sop_token_id, "mask_token_id": tokenizer.mask_token_id}
        ids["gmask_token_id"] = tokenizer.gmask_token_id
    model = build(request.param, vocab_size=(len(tokenizer) + 63) // 64 * 64, **ids)
    return Encoder(tokenizer, 256), model


def ids_of(encoder: Encoder, text: str) -> list[int]:
    return encoder.tokenizer.encode(text, add_special_tokens=False)


def test_a_template_has_a_mask_where_the_choice_belongs(taker):
    encoder, _ = taker
    tokenizer = encoder.tokenizer
    prompter = Prompter(encoder, load_task("tnews"), "pangu", False, 256)
    shot = Item("这是关于", ("体育",), 0, after="的文章:六", where="x:2")
    question, _ = prompter.question(ITEM, [shot])
    context = [
        *ids_of(encoder, "这是关于体育的文章:六\n这是关于"),
        tokenizer.mask_token_id,
        *ids_of(encoder, "的文章:一二三"),
    ]
    assert question.prompt == tokenizer.opening_ids(context)
    assert question.prompt[-1] == tokenizer.sop_token_id and question.num_scored == 0
    assert question.choices == [ids_of(encoder, choice) for choice in ITEM.choices]


def test_scores_are_those_of_the_published_inputs(taker):
    """For GLM the inputs that its published tokenizer makes for multiple choice; for ChatGLM single rows."""
    encoder, model = taker
    tokenizer = encoder.tokenizer
    question, _ = Prompter(encoder, load_task("tnews"), "pangu", False, 256).question(ITEM, [])
    (scores,) = score_questions(model, [question], token_budget=256)
    if hasattr(tokenizer, "build_inputs_for_multiple_choice"):
        context = tokenizer("这是关于[MASK]的文章:一二三", return_tensors="pt")
        inputs = tokenizer.build_inputs_for_multiple_choice(context, [list(question.choices)])
        assert inputs["input_ids"][0].tolist()[: len(question.prompt) - 1] == list(question.prompt[:-1])
        places = inputs.pop("choice_indices")[0] if inputs.pop("choice_ids") else []
        rows = [inputs] * len(places)
    else:
        rows = [row_inputs(model, [[*question.prompt, *choice]]) for choice in question.choices]
        first = len(question.prompt) - 1
        places = [range(first, first + len(choice)) for choice in question.choices]
    for score, row, where, choice in zip(scores, rows, places, question.choices, strict=True):
        with torch.no_grad():
            logprobs = model(**row).logits[0].log_softmax(-1)
        expected = sum(logprobs[place, token].item() for place, token in zip(where, choice, strict=True))
        assert score == pytest.approx(expected, abs=1e-4)


def test_answers_and_questions_go_through_the_free_mask(taker):
    """What follows a text, and what is written, stands for [gMASK]."""
    encoder, model = taker
    tokenizer = encoder.tokenizer
    text_item = Item("摘要一二三。", ("真实", "不同"), 0, where="x:1")
    prompter = Prompter(encoder, load_task("tnews"), "official", False, 256)
    question, _ = prompter.question(text_item, [])
    assert tokenizer.gmask_token_id in question.prompt and question.prompt[-1] == tokenizer.sop_token_id
    (answer,) = local(model, encoder).write([question.prompt], 5, lambda done, tokens: None)
    assert isinstance(answer, str)


@pytest.mark.parametrize("task", expand_tasks(["clue", "ceval", "mmlu", "cmmlu"]))
def test_every_task_can_be_asked(shared, tmp_path, task):
    """Real rows in the real vocabulary of GLM; a template as a mask in its place, all else as a continuation."""
    from keju.tokenizers.glm import GLMChineseTokenizer

    write_slices(shared / "data", tmp_path, num_rows=4)
    tokenizer = GLMChineseTokenizer(str(shared / "data/tokenizers/glm-chinese/cog-pretrain.model"))
    names = ("mask", "smask", "gmask", "sop", "eop")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    model = build("glm", vocab_size=50048, max_sequence_length=4096, **ids)
    encoder = Encoder(tokenizer, 4000)
    subjects, split = EXAMS.get(task, (None, "dev"))
    for protocol in load_task(task).protocols:
        settings = {"protocol": protocol, "split": split, "subjects": subjects, "num_shots": 1, "max_items": 3}
        result = evaluate(task, local(model, encoder, 4096), encoder, tmp_path, max_length=4000, **settings)
        assert result.summary["num_items"] == 3 and result.summary["accuracy"] is not None
        template = load_task(task).protocols[protocol].scored == "template"
        assert ("[MASK]" in result.example, "[gMASK]" in result.example) == (template, not template)
