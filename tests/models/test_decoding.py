"""The decoding loop against generate of transformers, for every family; and against forwards without a cache."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import BUILDERS, opening

from keju.models.decoding import decode
from keju.models.sampling import Sampling, choose, uniforms_of

EOS, PAD = 2, 3
GREEDY = lambda logits, rows, step: logits.argmax(-1)  # noqa: E731


def prompts_for(model) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = (3, 9, 1, 6)
    return [torch.randint(7, 90, (length,), generator=generator).tolist() + opening(model) for length in lengths]


def settings(**changes) -> dict:
    return {"num_responses": 1, "max_new_tokens": 10, "stop_ids": [EOS], "pad_id": PAD, "choose": GREEDY, **changes}


@pytest.mark.parametrize("family", BUILDERS)
def test_greedy_tokens_are_those_of_transformers(family):
    """Left-padded in both; some end early, and leave our batch."""
    model = BUILDERS[family](seed=0).eval()
    prompts = prompts_for(model)
    free = decode(model, prompts, **settings(stop_ids=[-1]))
    stop = [free[1][4], free[2][1]]  # so that rows end at different times
    ours = decode(model, prompts, **settings(stop_ids=stop))
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    theirs = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=stop, pad_token_id=PAD,
        num_beams=1,
    )[:, width:].tolist()  # fmt: skip
    assert len(set(map(len, ours))) > 1 or family == "chatglm"  # whose tied head repeats the last token
    assert ours == [row[: len(own)] for own, row in zip(ours, theirs, strict=True)]
    assert all(own[-1] in stop or len(own) == 10 for own in ours)


@pytest.mark.parametrize("family", ["llama", "glm", "chatglm", "baichuan-13B"])
def test_logits_are_those_of_a_plain_forward(family):
    """What the choice is made from, for each of several responses, however many rows have left."""
    model = BUILDERS[family](seed=0).eval()
    prompts = prompts_for(model)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    uniforms = torch.cat([uniforms_of(0, index, 3, 10) for index in range(len(prompts))])

    def watched(logits, rows, step):
        seen.update({(row, step): logits[place] for place, row in enumerate(rows.tolist())})
        return choose(logits, uniforms[rows, step], Sampling())

    rows = decode(model, prompts, **settings(num_responses=3, stop_ids=range(2, 40), choose=watched))
    assert len(set(map(len, rows))) > 1
    for number, row in enumerate(rows):
        prompt = prompts[number // 3]
        for step in range(len(row)):
            with torch.no_grad():
                inputs = model.prepare_inputs_for_generation(
                    torch.tensor([prompt + row[:step]]), attention_mask=torch.ones(1, len(prompt) + step).long()
                )
                plain = model(**inputs).logits[0, -1]
            torch.testing.assert_close(seen[number, step], plain, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_computed_once_and_finished_rows_leave():
    model = BUILDERS["llama"](seed=0).eval()
    prompts = prompts_for(model)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    uniforms = torch.cat([uniforms_of(0, index, 4, 10) for index in range(len(prompts))])
    rows = decode(
        model,
        prompts,
        **settings(
            num_responses=4,
            stop_ids=range(2, 40),
            choose=lambda logits, rows, step: choose(logits, uniforms[rows, step], Sampling()),
        ),
    )
    assert shapes[0] == (4, 9)  # four prompts, not sixteen rows
    sizes = [size for size, _ in shapes[1:]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 16
    for step, size in enumerate(sizes, start=1):
        live = sum(len(row) > step for row in rows)
        assert live <= size <= max(live / 0.75 + 1, 1)


def test_adapters_stay_active():
    model = BUILDERS["llama"](seed=0)
    prompts = prompts_for(model)
    plain = decode(model.eval(), prompts, **settings())
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    changed = decode(adapted.eval(), prompts, **settings())
    assert changed != plain
    with adapted.disable_adapter():
        assert decode(adapted, prompts, **settings()) == plain


def test_a_row_may_be_complete_without_an_end():
    model = BUILDERS["llama"](seed=0).eval()
    prompts = prompts_for(model)
    whole = decode(model, prompts, **settings(stop_ids=[-1]))
    short = decode(model, prompts, **settings(stop_ids=[-1], is_complete=lambda ids: len(ids) == 3))
    assert short == [row[:3] for row in whole]
