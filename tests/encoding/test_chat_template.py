"""Trained spans in what chat templates render, against the templates' own renderings."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from char_tokenizer import build_char_tokenizer

from keju.encoding import template_bounds
from keju.encoding.chat_settings import ChatSettings
from keju.encoding.dataset import encode_records
from keju.encoding.encoder import Encoder
from keju.encoding.refusals import RunawayTemplate, TooLong, Unencodable
from keju.encoding.template_check import check_against_template, trained_text
from keju.records.record import Answer, ChatRecord, Message, RankedRecord
from keju.tokenizers.named_templates import chat_template, template_names

ASCII = "".join(map(chr, range(32, 127)))
# An R1 distill: generation is opened with a thought, which the rendering of an answer leaves out.
DROPS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}问：{{ m.content }}{% else %}"
    "答：{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}答：<think>\n{% endif %}"
)
# Qwen3-Thinking: both generation and the last answer open a thought; earlier answers lose theirs.
OPENS = (
    "{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}"
)
TOOLS = (
    "{% if tools %}<s>{{ tools | tojson }}</s>{% endif %}{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}\n{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CALL = json.dumps([{"type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}])
TOOL = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {}}}])


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, **fields) -> Message:
    return Message("assistant", text, **fields)


def tokenizer_of(template: str | None, more: str = ""):
    tokenizer = build_char_tokenizer(ASCII + "\n问答：一二三四五想数晴北京天气怎么样今系统八九" + more)
    tokenizer.chat_template = template
    return tokenizer


def encoder_of(template: str | None, max_length: int = 4096, on_long: str = "skip", **chats) -> Encoder:
    return Encoder(tokenizer_of(template), max_length, on_long=on_long, chats=ChatSettings(**chats))


def learned(encoder: Encoder, *messages: Message, tools: str = "") -> list[str]:
    """What is trained of each tree, after a comparison with the template's own ids."""
    record = ChatRecord(messages, "f:1", tools)
    assert check_against_template(record, encoder, "sft")
    return [trained_text(tree, encoder) for tree in encoder.chat_trees(record)]


CHAT = (user("一"), said("二"), user("三"), said("四"))


def test_an_answer_is_found_in_a_rendering_that_leaves_out_the_opened_thought():
    encoder = encoder_of(DROPS)
    assert learned(encoder, *CHAT) == ["二</s> | 四</s>"]
    assert learned(encoder, user("一"), said("<think>\n数\n</think>\n\n二")) == ["\\n\\n二</s>"]
    assert encoder.tokenizer.decode(encoder.prompt_ids([user("一")])).endswith("答：<think>\n")
    with pytest.raises(Unencodable, match="^f:1: the chat template leaves out the thought of turn 2"):
        learned(encoder, user("一"), said("二", reasoning="数"))


def test_a_thought_stands_where_the_template_puts_it_and_is_closed_once():
    encoder = encoder_of(OPENS)
    assert learned(encoder, user("一"), said("二")) == ["\\n</think>\\n\\n二</s>"]
    messages = (user("一"), said("二", reasoning="想"), user("三"), said("四", reasoning="数"))
    assert learned(encoder, *messages) == ["想\\n</think>\\n\\n二</s>", "数\\n</think>\\n\\n四</s>"]
    for tree in encoder.chat_trees(ChatRecord(messages, "f:1")):
        text = encoder.tokenizer.decode([index for part in tree.preorder() for index in part.tokens])
        assert text.count("<think>") == text.count("</think>") == 1


def test_thinking_and_what_is_trained_of_it_are_settings():
    messages = (user("一"), said("二", reasoning="想"), user("三"), said("四", reasoning="数"))
    assert learned(encoder_of(OPENS, train_turns="last"), *messages) == ["数\\n</think>\\n\\n四</s>"]
    assert learned(encoder_of(OPENS, train_thoughts="none"), *messages) == ["二</s>", "四</s>"]
    assert learned(encoder_of(OPENS, train_thoughts="last"), *messages) == ["二</s>", "数\\n</think>\\n\\n四</s>"]
    assert learned(encoder_of(OPENS, enable_thinking=False), user("一"), said("二")) == ["二</s>"]
    for template in (DROPS, None):
        with pytest.raises(ValueError, match="^enable_thinking: "):
            encoder_of(template, enable_thinking=True)
    with pytest.raises(ValueError, match="^train_turns: first: choose from all, last"):
        ChatSettings(train_turns="first")


def test_ranked_answers_follow_the_rendered_whole():
    record = RankedRecord((user("一"),), (Answer("二", 1.0), Answer("三", 0.0)), where="f:1")
    encoder = encoder_of(DROPS)
    tree = encoder.ranked_tree(record)
    assert encoder.tokenizer.decode(tree.tokens) == "<s>问：一答："
    assert [encoder.tokenizer.decode(branch.tokens) for branch in tree.branches] == ["二</s>", "三</s>"]
    assert check_against_template(record, encoder, "ranked")
    given = RankedRecord((user("一"),), (Answer("三", 1.0),), prefix="二", where="f:1")
    assert encoder.tokenizer.decode(encoder.ranked_tree(given).tokens) == "<s>问：一答：二"
    thoughts = RankedRecord((user("一"),), (Answer("二", 1.0, reasoning="想"), Answer("三", 0.0)), where="f:1")
    branches = encoder_of(OPENS).ranked_tree(thoughts).branches
    assert [encoder.tokenizer.decode(b.tokens) for b in branches] == ["想\n</think>\n\n二</s>", "\n</think>\n\n三</s>"]


def test_a_token_that_reaches_into_the_answer_is_trained():
    """Templates that end their prompt with a blank, and tokenizers that begin words with one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", "▁A:", "▁", "▁yes", "▁no", "▁Q", "▁ok"]
    own = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "<unk>"))
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} A: {% else %}{{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    encoder = Encoder(tokenizer, 64)
    record = RankedRecord((user("Q"),), (Answer("yes", 1.0), Answer("no", 0.0)), where="f:1")
    assert check_against_template(record, encoder, "ranked")
    tree = encoder.ranked_tree(record)
    assert tokenizer.convert_ids_to_tokens(tree.tokens) == ["▁Q", "▁A:"]
    assert tokenizer.convert_ids_to_tokens(tree.branches[0].tokens) == ["▁yes", "</s>"]


def test_tools_and_calls_are_rendered_or_refused():
    messages = (user("天气"), said("", tool_calls=CALL), Message("tool", "晴", name="weather"), said("今天晴"))
    assert learned(encoder_of(TOOLS), *messages, tools=TOOL) == ["weather(北京)</s> | 今天晴</s>"]
    with pytest.raises(Unencodable, match=r"^f:1: the chat template leaves out the tools \(weather\)"):
        learned(encoder_of(OPENS), user("一"), said("二"), tools=TOOL)
    with pytest.raises(Unencodable, match=r"^f:1: the chat template leaves out the text of turn 2 \(assistant\)"):
        learned(encoder_of(chat_template("llama3")), *messages)
    with pytest.raises(Unencodable, match="^f:1: the record has tools, and the tokenizer has no chat template"):
        encoder_of(None).chat_trees(ChatRecord(messages, "f:1", TOOL))
    # A template that adds the arguments to a text wants them as one.
    texts = TOOLS.replace("c.function.arguments.city", "'' + c.function.arguments")
    assert learned(encoder_of(texts), *messages, tools=TOOL) == ['weather({"city": "北京"})</s> | 今天晴</s>']


def test_weights_of_turns():
    (tree,) = encoder_of(TOOLS).chat_trees(ChatRecord((user("一"), said("二", weight=0.0), *CHAT[2:]), "f:1"))
    assert trained_text(tree, encoder_of(TOOLS)) == "四</s>" and not tree.token_values
    (tree,) = encoder_of(TOOLS).chat_trees(ChatRecord((user("一"), said("二", weight=0.5), *CHAT[2:]), "f:1"))
    weights = [weight for weight, flag in zip(tree.token_values["weight"], tree.trained, strict=True) if flag]
    assert weights == [0.5, 0.5, 1.0, 1.0]
    for template in (TOOLS, None):
        with pytest.raises(Unencodable, match="^f:1: no assistant turn is trained: their weights are 0"):
            encoder_of(template).chat_trees(ChatRecord((user("一"), said("二", weight=0.0)), "f:1"))


def test_a_turn_before_that_of_a_user_is_context():
    for template in (TOOLS, None):
        encoder = encoder_of(template)
        (tree,) = encoder.chat_trees(ChatRecord((said("一"), user("二"), said("三")), "f:1"))
        assert trained_text(tree, encoder) == "三</s>" and "一" in encoder.tokenizer.decode(tree.tokens)


@pytest.mark.parametrize("name", template_names())
def test_named_templates_equal_their_own_rendering(name):
    encoder = encoder_of(chat_template(name))
    learned(encoder, Message("system", "系统"), *CHAT)
    learned(encoder, user(" 一 "), said("\n二\n"))
    if name not in ("chatml", "llama3"):
        for wrong in ((said("一"), *CHAT), (user("五"), *CHAT), (*CHAT[:2], Message("tool", "五"), said("一"))):
            with pytest.raises(Unencodable, match="^f:1: the chat template refuses .*: turns must alternate"):
                learned(encoder, *wrong)


PUBLISHED = ("qwen2_5", "qwen3", "deepseek_r1_distill", "llama3_2", "glm4moe", "nemotron_3_nano", "gptoss", "gemma3")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(name):
    found = find_spec("trl")
    path = found and Path(found.origin).parent / "chat_templates" / f"{name}.jinja"
    if not path or not path.is_file():
        pytest.skip("trl with its chat templates is not installed")
    encoder = encoder_of(path.read_text(encoding="utf-8"))
    for messages in (CHAT, CHAT[:2], (user("一"), said("<think>\n数\n</think>\n\n二")), (user(" 一"), said(" 二\n"))):
        assert all(text.count("二") + text.count("四") for text in learned(encoder, *messages))


def test_what_a_template_refuses_has_its_place_and_can_be_skipped():
    template = "{{ raise_exception('no') if messages[0].content == '二' }}" + TOOLS
    encoder = encoder_of(template)
    records = [ChatRecord((user(text), said("四")), f"f:{number}") for number, text in enumerate("一二三", start=1)]
    with pytest.raises(Unencodable, match="^f:2: the chat template refuses the conversation: no$"):
        encode_records(records, encoder, "sft")
    encoded = encode_records(records, encoder, "sft", on_bad_line="skip")
    assert encoded.where == ["f:1", "f:3"] and encoded.skipped == [
        "f:2: the chat template refuses the conversation: no"
    ]
    with pytest.raises(Unencodable, match="^f:9: the chat template fails with the conversation: "):
        encoder_of("{% for m in messages %}{{ m.content + 1 }}{% endfor %}").chat_trees(ChatRecord(CHAT, "f:9"))
    half = ChatRecord((user("\ud83d"), said("四")), "f:4")
    for template in (TOOLS, None):
        with pytest.raises(Unencodable, match=r"^f:4: half of a surrogate pair \(U\+D83D\) is no text"):
            encoder_of(template).chat_trees(half)


@pytest.mark.parametrize("template", [None, TOOLS, chat_template("vicuna")])
def test_long_conversations_take_linear_time(template):
    """By the calls of functions that they take, which no other load on the machine changes."""

    def num_calls(turns: int) -> int:
        messages = [Message("user" if n % 2 == 0 else "assistant", f"一{n}") for n in range(turns)]
        record, encoder = ChatRecord(tuple(messages), "f:1"), encoder_of(template, max_length=10**6)
        counts = Counter()
        sys.setprofile(lambda frame, event, argument: counts.update([event]))
        try:
            (tree,) = encoder.chat_trees(record)
        finally:
            sys.setprofile(None)
        assert trained_text(tree, encoder_of(None)).count("|") == turns // 2 - 1
        return counts["call"] + counts["c_call"]

    num_calls(100)
    assert num_calls(1600) < 5 * num_calls(400)


@pytest.mark.parametrize("template", [None, TOOLS, OPENS])
def test_beyond_the_maximum_length_nothing_is_encoded(template):
    messages = [Message("user" if n % 2 == 0 else "assistant", "一二三四五") for n in range(1500)]
    messages[-1] = said("一" * 10_000_000)
    record = ChatRecord(tuple(messages), "f:1")
    start = time.process_time()
    with pytest.raises(TooLong, match="^f:1: "):
        encoder_of(template, 256).chat_trees(record)
    trees = encoder_of(template, 256, "truncate").chat_trees(record)
    assert all(tree.num_tokens <= 256 for tree in trees)
    assert time.process_time() - start < 20


ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set x = namespace(t='ab') %}{% for i in range(60) %}{% set x.t = x.t ~ x.t %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [(ENDLESS, "takes more than 1 s"), (DOUBLING, "fills the memory"), ("{{ 'a' * 10000000000 }}", "fills the memory")],
)
def test_a_template_that_does_not_end_is_stopped(template, reason, monkeypatch):
    monkeypatch.setattr(template_bounds, "SECONDS", 1.0)
    monkeypatch.setattr("keju.encoding.chat_template.SECONDS", 1.0)
    encoder = encoder_of(template)
    records = [ChatRecord(CHAT, "f:1")]
    with pytest.raises(RunawayTemplate, match=f"^f:1: the chat template {reason}"):
        encode_records(records, encoder, "sft", on_bad_line="skip")
