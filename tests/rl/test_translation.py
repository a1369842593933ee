"""Reward models of another tokenizer and family: text over, scores back."""

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from tiny_models import build_llama, build_pangu, build_scalar_model

from keju.encoding.encoder import Encoder
from keju.models.generation import Response
from keju.records.record import Answer, Message, RankedRecord
from keju.rl.rollout import Rollout
from keju.rl.scoring import Reader, score_rollouts
from keju.rl.translation import Translation, differences, reads_alike

EOS = 2


@pytest.fixture
def actor_tokenizer():
    return build_char_tokenizer()


@pytest.fixture
def reward_tokenizer():
    """The same characters under other ids, and more of them."""
    return build_char_tokenizer("\n另外思意的”“释解。：语成")


def record(text: str) -> RankedRecord:
    return RankedRecord((Message("user", text),), (Answer("x", 1.0),))


@pytest.fixture
def setting(actor_tokenizer, reward_tokenizer):
    """Two prompts with responses in the actor's ids, and a translation of them."""
    encoder = Encoder(actor_tokenizer, max_length=100)
    records = {tuple(encoder.prompt_tree(r).tokens): r for r in (record("成语" + CHARACTERS[0]), record(CHARACTERS[5]))}

    def response(text: str, finished: bool) -> Response:
        ids = actor_tokenizer.encode(text, add_special_tokens=False)
        return Response((*ids, *([EOS] if finished else [])), finished)

    texts = [[("解释" + CHARACTERS[7], True), ("的意思", False)], [("", True), (CHARACTERS[9] * 4, True)]]
    rollouts = [
        Rollout(prompt, tuple(response(*answer) for answer in answers))
        for prompt, answers in zip(records, texts, strict=True)
    ]
    return Translation(actor_tokenizer, Encoder(reward_tokenizer, max_length=100), records), rollouts, texts


def test_what_decides_a_rendering_is_compared(actor_tokenizer, reward_tokenizer):
    assert reads_alike(actor_tokenizer, build_char_tokenizer())
    assert differences(actor_tokenizer, reward_tokenizer) == ["vocabulary"]
    other = build_char_tokenizer()
    other.pad_token = CHARACTERS[3]
    assert reads_alike(actor_tokenizer, other)
    other.eos_token = CHARACTERS[4]
    assert differences(actor_tokenizer, other) == ["special tokens"]
    other = build_char_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert differences(actor_tokenizer, other) == ["chat template"]


def test_responses_are_rendered_as_the_reward_model_was_trained(setting, reward_tokenizer):
    translation, rollouts, texts = setting
    trees = translation.trees(rollouts, token_budget=64)
    for tree, rollout, answers in zip(trees, rollouts, texts, strict=True):
        own = translation.records[rollout.prompt].messages[0].content
        assert reward_tokenizer.decode(tree.tokens) == f"<s>{own}\n"
        for branch, (text, finished) in zip(tree.branches, answers, strict=True):
            expected = reward_tokenizer.encode(text, add_special_tokens=False)
            assert list(branch.tokens) == [*expected, *([EOS] if finished else [])]
    assert [branch.number for tree in trees for branch in tree.branches] == [0, 1, 2, 3]


@pytest.mark.parametrize("build", [build_llama, build_pangu])
def test_scores_are_those_of_the_text_alone(setting, reward_tokenizer, build):
    """The same numbers as the reward model gives to prompt + answer in its own ids, one by one."""
    translation, rollouts, texts = setting
    judge = build_scalar_model(build(vocab_size=128, seed=4), seed=5)
    actor, reference = build_llama(seed=0), build_llama(seed=1)
    critic = build_scalar_model(build_llama(seed=2), seed=3)
    scored = score_rollouts(
        rollouts,
        actor=actor,
        reference=reference,
        critic=critic,
        reward=Reader(judge, translation),
        mode="keju",
        pad_id=3,
        temperature=1.0,
        token_budget=24,
    )
    row = 0
    for rollout, answers in zip(rollouts, texts, strict=True):
        prompt = reward_tokenizer.encode(translation.records[rollout.prompt].messages[0].content + "\n")
        for text, finished in answers:
            ids = prompt + reward_tokenizer.encode(text, add_special_tokens=False) + [EOS] * finished
            backbone = getattr(judge, judge.base_model_prefix)
            with torch.no_grad():
                expected = judge.score(backbone(torch.tensor([ids])).last_hidden_state)[0, -1, 0]
            torch.testing.assert_close(scored.scores[row], expected, atol=1e-5, rtol=1e-5)
            row += 1
    # what is trained are the ids as they were generated
    assert scored.lengths.tolist() == [len(response.ids) for rollout in rollouts for response in rollout.responses]


def test_a_cut_off_response_without_text_is_read_at_its_end(setting):
    translation, rollouts, _ = setting
    (tree,) = translation.trees([Rollout(rollouts[0].prompt, (Response((3,), False),))], token_budget=64)
    assert list(tree.branches[0].tokens) == [EOS]
