"""Every field layout becomes the record it should, and every wrong field is named."""

from dataclasses import replace

import pytest

from keju.records.formats import LEAST_MARGIN, detect
from keju.records.record import Answer, ChatRecord, Message, RankedRecord, TextRecord

USER, ASSISTANT, SYSTEM = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))
SHAREGPT = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
MESSAGES = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
PAIR = RankedRecord((USER("问"),), (Answer("好", 1.0), Answer("坏", 0.0)))
CHAT = ChatRecord((USER("问"), ASSISTANT("答")))

GOOD = {
    "text": ({"text": "春眠不觉晓"}, TextRecord("春眠不觉晓")),
    "prompt alone": ({"prompt": "春眠", "domain_zh": "诗"}, TextRecord("春眠")),
    "prompt and label": ({"prompt": "春眠", "label": "不觉晓"}, TextRecord("春眠不觉晓", label="不觉晓")),
    "null label": ({"prompt": "春眠", "label": None}, TextRecord("春眠")),
    "prompt of messages": ({"prompt": MESSAGES[:1]}, ChatRecord((USER("问"),))),
    "ranked": (
        {"prompt": "问", "prefix": "答：", "system": "你是学者", "answers": [{"answer": "坏", "score": -1},
                                                                       {"answer": "好", "score": 2.5}]},
        RankedRecord((SYSTEM("你是学者"), USER("问")), (Answer("坏", -1.0), Answer("好", 2.5)), prefix="答："),
    ),  # fmt: skip
    "ranked, empty options": (
        {"prompt": "问", "prefix": "", "system": "", "answers": [{"answer": "好", "score": 1}]},
        RankedRecord((USER("问"),), (Answer("好", 1.0),)),
    ),
    "chat": ({"messages": MESSAGES}, CHAT),
    "chat with system field": ({"messages": MESSAGES, "system": "你是学者"},
                               ChatRecord((SYSTEM("你是学者"), *CHAT.messages))),
    "chat with prompt beside it": ({"messages": MESSAGES, "prompt": "问", "prompt_id": "7"}, CHAT),
    "sharegpt": ({"conversations": SHAREGPT}, CHAT),
    "alpaca": ({"instruction": "问", "input": "", "output": "答"}, CHAT),
    "alpaca without input": ({"instruction": "问", "output": "答"}, CHAT),
    "alpaca with input": ({"instruction": "翻译", "input": "hi", "output": "你好"},
                          ChatRecord((USER("翻译\nhi"), ASSISTANT("你好")))),
    "alpaca with history": ({"instruction": "问", "input": "", "output": "答", "history": [["早", "早上好"]]},
                            ChatRecord((USER("早"), ASSISTANT("早上好"), *CHAT.messages))),
    "alpaca, ranked outputs": ({"instruction": "问", "input": "", "output": ["好", "中", "坏"]},
                               RankedRecord((USER("问"),), tuple(map(Answer, ("好", "中", "坏"), (0.0, -1.0, -2.0))))),
    "completion": ({"prompt": "问", "completion": "答"}, CHAT),
    "completion, conversational": ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, CHAT),
    "preference": ({"prompt": "问", "chosen": "好", "rejected": "坏"}, PAIR),
    "preference, conversational": (
        {"prompt": MESSAGES[:1], "chosen": [{"role": "assistant", "content": "好"}],
         "rejected": [{"role": "assistant", "content": "坏"}]}, PAIR),
    "preference, whole conversations": (
        {"chosen": [MESSAGES[0], {"role": "assistant", "content": "好"}],
         "rejected": [MESSAGES[0], {"role": "assistant", "content": "坏"}]}, PAIR),
    "preference, sharegpt and texts": ({"conversations": SHAREGPT[:1], "chosen": "好", "rejected": "坏"}, PAIR),
    "preference, sharegpt and turns": (
        {"conversations": SHAREGPT[:1], "chosen": {"from": "gpt", "value": "好"},
         "rejected": {"from": "gpt", "value": "坏"}}, PAIR),
    "preference, alpaca": ({"instruction": "问", "input": "", "chosen": "好", "rejected": "坏"}, PAIR),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_layout_is_read(name):
    row, record = GOOD[name]
    assert detect(row) == record


def ranked_with(answer, **fields):
    return {"prompt": "问", "answers": [{"answer": "好", "score": 1}, answer], **fields}


BAD = {
    "not an object": (["问", "答"], "expected a JSON object, found a list"),
    "no known field": ({"input": "问", "target": "答"}, '"input", "target" are no known format. Expected "answers"'),
    "no field": ({}, "fields none are no known format"),
    "all null": ({"text": None}, "fields none are no known format"),
    "prompt with an answer of unknown name": ({"prompt": "问", "selected": "好", "rejected": "坏"}, '"selected" is no'),
    "text is a number": ({"text": 7}, '"text" must be a string, found a number'),
    "text is blank": ({"text": " \n\u3000"}, '"text" is empty'),
    "text with half a character": ({"text": "\ud83d"}, "broken character"),
    "label is a list": ({"prompt": "问", "label": []}, '"label" must be a string, found a list'),
    "answers is an object": ({"prompt": "问", "answers": {}}, '"answers" must be a list, found an object'),
    "no answers": ({"prompt": "问", "answers": []}, '"answers" is empty'),
    "answers without prompt": ({"answers": [{"answer": "好", "score": 1}]}, '"prompt" is missing'),
    "answer is text": (ranked_with("好"), 'answer 2 of "answers" must be an object with "answer" and "score"'),
    "answer without score": (ranked_with({"answer": "好"}), 'answer 2 of "answers" must be an object'),
    "answer is empty": (ranked_with({"answer": "", "score": 0}), 'answer 2 of "answers" is empty'),
    "answer is null": (ranked_with({"answer": None, "score": 0}), 'answer 2 of "answers" must be a string, found null'),
    "score is text": (ranked_with({"answer": "坏", "score": "0"}), '"score" of answer 2 of "answers" must be a number'),
    "score is a truth value": (ranked_with({"answer": "坏", "score": True}), "found true or false"),
    "score is NaN": (ranked_with({"answer": "坏", "score": float("nan")}), "is not a finite number"),
    "score is infinite": (ranked_with({"answer": "坏", "score": float("inf")}), "is not a finite number"),
    "score is beyond floats": (ranked_with({"answer": "坏", "score": 10**400}), "is not a finite number"),
    "prefix is a number": (ranked_with({"answer": "坏", "score": 0}, prefix=1), '"prefix" must be a string'),
    "prompt is empty": ({"prompt": "", "answers": [{"answer": "好", "score": 1}]}, '"prompt" is empty'),
    "context ends with an answer": ({"prompt": MESSAGES, "chosen": "好", "rejected": "坏"}, "must end with a user"),
    "messages is text": ({"messages": "问"}, '"messages" must be a list, found a string'),
    "no messages": ({"messages": []}, '"messages" is empty'),
    "no assistant": ({"messages": MESSAGES[:1]}, '"messages" has no assistant turn to learn from'),
    "assistant turn is empty": ({"messages": [MESSAGES[0], {"role": "assistant", "content": ""}]},
                                'turn 2 of "messages" is empty'),
    "turn without content": ({"messages": [{"role": "user"}]}, 'turn 1 of "messages" needs "role" and "content"'),
    "turn is text": ({"messages": ["问"]}, 'turn 1 of "messages" must be an object, found a string'),
    "unknown role": ({"conversations": [{"from": "alien", "value": "问"}]}, "unknown role 'alien'; known are system"),
    "role is a list": ({"messages": [{"role": ["user"], "content": "问"}]}, "unknown role ['user']"),
    "system twice": ({"messages": [{"role": "system", "content": "甲"}, *MESSAGES], "system": "乙"}, "a system turn"),
    "alpaca output is empty": ({"instruction": "问", "input": "", "output": ""}, '"output" is empty'),
    "alpaca output is a number": ({"instruction": "问", "input": "", "output": 3}, '"output" must be a string'),
    "alpaca outputs hold nothing": ({"instruction": "问", "output": []}, '"output" is empty'),
    "alpaca output 2 is empty": ({"instruction": "问", "output": ["好", " "]}, 'answer 2 of "output" is empty'),
    "alpaca question is empty": ({"instruction": "", "input": "", "output": "答"}, '"instruction" is empty'),
    "history is no pair": ({"instruction": "问", "output": "答", "history": [["早"]]}, '"history" is not a pair'),
    "chosen alone": ({"prompt": "问", "chosen": "好"}, '"prompt" with "chosen" is no known format'),
    "chosen is empty": ({"prompt": "问", "chosen": "", "rejected": "坏"}, '"chosen" is empty'),
    "chosen is a number": ({"prompt": "问", "chosen": 1, "rejected": "坏"}, '"chosen" must be a list, found a number'),
    "chosen ends with a question": ({"prompt": "问", "chosen": MESSAGES[:1], "rejected": "坏"},
                                    '"chosen" must end with an assistant turn'),
    "two conversations": ({"chosen": MESSAGES, "rejected": [{"role": "user", "content": "别"}, MESSAGES[1]]},
                          "do not answer the same conversation"),
    "preference without prompt": ({"chosen": "好", "rejected": "坏"}, '"prompt" is missing'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_field_is_named_in_one_line(name):
    row, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        detect(row)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_best_answer_and_preference():
    record = detect(ranked_with({"answer": "更好", "score": 2}))
    assert record.best == Answer("更好", 2.0)
    assert record.has_preference


def test_equal_scores_are_a_record_without_preference():
    record = detect(ranked_with({"answer": "也好", "score": 1}))
    assert not record.has_preference
    assert record.best.text == "好"


def test_prompt_of_a_chat_ends_before_its_last_answer():
    assert CHAT.prompt == (USER("问"),)
    assert ChatRecord((USER("甲"),)).prompt == (USER("甲"),)
    assert ChatRecord((*CHAT.messages, USER("再问"), ASSISTANT("再答"))).prompt == (*CHAT.messages, USER("再问"))


def marked(good):
    return RankedRecord((USER("问"),), (Answer("答", float(good), good),))


ROWS = {
    "prompt+completion": {"prompt": "问", "completion": "答"},
    "conversational": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "alpaca": {"instruction": "问", "input": "", "output": "答"},
    "messages": {"messages": MESSAGES},
    "sharegpt": {"conversations": SHAREGPT},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("field", ["label", "kto_tag", "is_good"])
@pytest.mark.parametrize("mark", [True, 1, 1.0, "true", "True ", "yes", "1", False, 0, 0.0, "false", "No", "0", "0.0"])
def test_marks_of_one_answer(row, field, mark):
    good = str(mark).strip().lower() in ("true", "1", "1.0", "yes")
    assert detect({**row, field: mark}) == marked(good)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("mark", ["maybe", 3, -1, 0.5, [True], {"a": 1}])
def test_marks_that_cannot_be_understood(row, mark):
    with pytest.raises(ValueError, match='"label" must be true or false'):
        detect({**row, "label": mark})


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_a_mark_of_a_merged_table_may_be_null(nothing):
    assert detect({**ROWS["alpaca"], "label": nothing, "kto_tag": False}) == marked(False)
    assert detect({**ROWS["alpaca"], "label": nothing}) == CHAT


def turn(**fields):
    return {"messages": [MESSAGES[0], {**MESSAGES[1], **fields}]}


def assistant(**fields):
    return ChatRecord((USER("问"), Message("assistant", "答", **fields)))


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "甲"}}}
CALL_TEXT = '[{"type": "function", "function": {"name": "f", "arguments": {"x": "甲"}}}]'
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
TOOLS_TEXT = '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]'
CALLED = ChatRecord(
    (USER("问"), Message("assistant", "", tool_calls=CALL_TEXT), Message("tool", "晴"), ASSISTANT("答"))
)


def calling(turn, **row):
    return {"messages": [MESSAGES[0], turn, {"role": "tool", "content": "晴"}, MESSAGES[1]], **row}


FIELDS = {
    "weight 0": (turn(weight=0), assistant(weight=0.0)),
    "weight": (turn(weight=0.25), assistant(weight=0.25)),
    "loss": (turn(loss=False), assistant(weight=0.0)),
    "loss true": (turn(loss=True), assistant()),
    "train": (turn(train=False), assistant(weight=0.0)),
    "masked": (turn(masked=True), assistant(weight=0.0)),
    "marks that agree": (turn(weight=0.5, train=True, loss="true"), assistant(weight=0.5)),
    "null marks": (turn(weight=None, loss=None, mask=None, train=float("nan")), assistant()),
    "weight of the row": ({**ROWS["alpaca"], "weight": 0.5}, assistant(weight=0.5)),
    "weights of row and turn": ({**turn(weight=0.5), "weight": 0.5}, assistant(weight=0.25)),
    "user turn not trained": ({"messages": [{**MESSAGES[0], "loss": False, "weight": 0}, MESSAGES[1]]}, CHAT),
    "reasoning_content": (turn(reasoning_content="想"), assistant(reasoning="想")),
    "reasoning": (turn(reasoning="想", reasoning_content=None), assistant(reasoning="想")),
    "thinking": (turn(thinking="想"), assistant(reasoning="想")),
    "thinking part": (turn(content=[{"type": "thinking", "thinking": "想"}, {"type": "text", "text": "答"}]),
                      assistant(reasoning="想")),
    "reasoning of the row": ({**ROWS["alpaca"], "reasoning": "想"}, assistant(reasoning="想")),
    "reasoning of chosen": (
        {"prompt": "问", "chosen": [{**MESSAGES[1], "reasoning_content": "想"}], "rejected": "坏"},
        RankedRecord((USER("问"),), (Answer("答", 1.0, reasoning="想"), Answer("坏", 0.0)))),
    "how it was made": ({**ROWS["messages"], "reasoning": "on"}, CHAT),
    "parts": (turn(content=[{"type": "text", "text": "答", "image": None}]), CHAT),
    "nulls in turns": ({"messages": [{"from": "human", "value": "问", "role": None, "content": None},
                                     {"from": "gpt", "value": "答", "role": None, "content": None}]}, CHAT),
    "capital roles": ({"messages": [{"role": "User", "content": "问"}, {"role": "ASSISTANT ", "content": "答"}]}, CHAT),
    "developer": ({"messages": [{"role": "developer", "content": "令"}, *MESSAGES]},
                  ChatRecord((SYSTEM("令"), *CHAT.messages))),
    "empty system turn": ({"messages": [{"role": "system", "content": ""}, *MESSAGES]}, CHAT),
    "system in the middle": ({"messages": [*MESSAGES, {"role": "system", "content": "令"}]},
                             ChatRecord((*CHAT.messages, SYSTEM("令")))),
    "system_prompt": ({"messages": MESSAGES, "system_prompt": "令"}, ChatRecord((SYSTEM("令"), *CHAT.messages))),
    "system beside a prompt": ({"prompt": "问", "system": "令"}, ChatRecord((SYSTEM("令"), USER("问")))),
    "calls": (calling({"role": "assistant", "content": None, "tool_calls": [CALL]}), CALLED),
    "calls, no content": (calling({"role": "assistant", "tool_calls": [CALL]}), CALLED),
    "calls as text": (calling({"role": "assistant", "content": "", "tool_calls": CALL_TEXT}), CALLED),
    "arguments as text": (calling({"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "f", "arguments": '{"x": "甲"}'}}]}), CALLED),
    "function_call turn": (
        calling({"from": "function_call", "value": '{"name": "f", "arguments": {"x": "甲"}}'}), CALLED),
    "old function_call": (calling({"role": "assistant", "content": None,
                                   "function_call": {"name": "f", "arguments": '{"x": "甲"}'}}), CALLED),
    "two call turns": (
        {"messages": [MESSAGES[0], *[{"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}] * 2]},
        ChatRecord((USER("问"), Message("assistant", "", tool_calls=(
            '[{"type": "function", "function": {"name": "f", "arguments": {}}}, '
            '{"type": "function", "function": {"name": "f", "arguments": {}}}]'))))),
    "call after words": (
        {"messages": [*MESSAGES, {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": "甲"}}'}]},
        assistant(tool_calls=CALL_TEXT)),
    "tools": ({**ROWS["messages"], "tools": TOOLS}, ChatRecord(CHAT.messages, tools=TOOLS_TEXT)),
    "tools as text": ({**ROWS["sharegpt"], "tools": TOOLS_TEXT}, ChatRecord(CHAT.messages, tools=TOOLS_TEXT)),
    "tools without a frame": ({**ROWS["alpaca"], "functions": [TOOLS[0]["function"]]},
                              ChatRecord(CHAT.messages, tools=TOOLS_TEXT)),
    "tools, each as text": ({**ROWS["messages"], "tools": [TOOLS_TEXT[1:-1]]},
                            ChatRecord(CHAT.messages, tools=TOOLS_TEXT)),
    "tools with nulls of a table": (
        {**ROWS["messages"], "tools": [{**TOOLS[0], "strict": None},
                                       {"function": {**TOOLS[0]["function"], "d": None}}]},
        ChatRecord(CHAT.messages, tools=f"[{TOOLS_TEXT[1:-1]}, {TOOLS_TEXT[1:-1]}]")),
    "no tools": ({**ROWS["messages"], "tools": "[]", "images": [], "videos": None, "audios": [None]}, CHAT),
    "name from the call": (
        {"messages": [MESSAGES[0], {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "1"}]},
                      {"role": "tool", "content": "", "tool_call_id": "1"}]},
        ChatRecord((USER("问"), Message("assistant", "", tool_calls='[{"id": "1", ' + CALL_TEXT[2:]),
                    Message("tool", "", name="f")))),
    "scores": ({"prompt": "问", "chosen": "好", "rejected": "坏", "score_chosen": 8.5, "score_rejected": 3},
               RankedRecord((USER("问"),), (Answer("好", 8.5), Answer("坏", 3.0)))),
    "margin": ({"prompt": "问", "chosen": "好", "rejected": "坏", "margin": 2},
               RankedRecord((USER("问"),), (Answer("好", 2.0), Answer("坏", 0.0)))),
    "margin 0": ({"prompt": "问", "chosen": "好", "rejected": "坏", "margin": 0},
                 RankedRecord((USER("问"),), (Answer("好", LEAST_MARGIN), Answer("坏", 0.0)))),
    "UltraFeedback": ({"prompt": "问", "prompt_id": "7", "messages": MESSAGES, "score_chosen": 8, "score_rejected": 8,
                       "chosen": [MESSAGES[0], {"role": "assistant", "content": "好"}],
                       "rejected": [MESSAGES[0], {"role": "assistant", "content": "坏"}]},
                      RankedRecord((USER("问"),), (Answer("好", 8.0), Answer("坏", 8.0)))),
    "rejected_response": ({"messages": MESSAGES, "rejected_response": "坏"},
                          RankedRecord((USER("问"),), (Answer("答", 1.0), Answer("坏", 0.0)))),
    "rejected_messages": ({"messages": MESSAGES, "rejected_messages": [MESSAGES[0], {**MESSAGES[1], "content": "坏"}]},
                          RankedRecord((USER("问"),), (Answer("答", 1.0), Answer("坏", 0.0)))),
    "marks among ranked answers": (
        {"prompt": "问", "answers": [{"answer": "好", "score": 1, "is_good": False, "reasoning_content": "想"}]},
        RankedRecord((USER("问"),), (Answer("好", 1.0, False, "想"),))),
    "completion after earlier turns": (
        {"prompt": [*MESSAGES, MESSAGES[0]], "completion": "答"},
        ChatRecord((CHAT.messages[0], replace(CHAT.messages[1], weight=0.0), *CHAT.messages))),
    "marked completion after earlier turns": (
        {"prompt": [*MESSAGES, MESSAGES[0]], "completion": "答", "label": False},
        RankedRecord((*CHAT.messages, CHAT.messages[0]), (Answer("答", 0.0, False),))),
    "completion of several turns": (
        {"prompt": "问", "completion": [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "晴"},
                                       MESSAGES[1]]}, CALLED),
    "metadata": ({**ROWS["alpaca"], "id": 7, "source": "x", "url": "u", "language": "zh", "category": ["a"]}, CHAT),
    "a prompt with facts about its answer": (
        {"prompt": "问", "answer_type": "数", "target_lang": "zh", "num_responses": 4, "response_length": 7},
        TextRecord("问")),
    "a text with a target class": ({"text": "文", "target": "好"}, TextRecord("文")),
    "a text with a class": ({"text": "文", "label": 3, "margin": 2}, TextRecord("文")),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_fields_mean_what_they_say(name):
    row, record = FIELDS[name]
    assert detect(row) == record


REFUSED = {
    "several answers beside a prompt": ({"prompt": "问", "responses": ["好", "坏"]}, '"prompt" with "responses"'),
    "two answers beside a prompt": ({"prompt": "问", "response_a": "好"}, '"prompt" with "response_a"'),
    "an answer beside a text": ({"text": "问", "reply": "答"}, '"text" with "reply"'),
    "a flag of another format": (turn(train_on_turn=False), '"train_on_turn" is not known; write "loss"'),
    "weights of tokens": (turn(token_weights=[1, 0]), '"token_weights" is not known'),
    "a thought by another name": (turn(cot="想"), '"cot" is not known; write "reasoning_content"'),
    "a thought beside an answer": ({**ROWS["alpaca"], "cot": "想"}, '"cot" has no known meaning'),
    "images": ({**ROWS["messages"], "images": ["a.jpg"]}, '"images" cannot be learned'),
    "image part": (turn(content=[{"type": "image_url", "image_url": {"url": "u"}}]), "part of the type 'image_url'"),
    "mask": (turn(mask=True), 'turn 2 of "messages": "mask" means "trained" in some formats'),
    "training_detail": (turn(training_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}]), "span by span"),
    "weight and loss": (turn(weight=0, loss=True), "contradict each other"),
    "train and loss": (turn(train=False, loss=True), "contradict each other"),
    "weight below 0": (turn(weight=-1), "is below 0"),
    "weight as text": (turn(weight="1"), "must be a number"),
    "trained user turn": ({"messages": [{**MESSAGES[0], "train": True}, MESSAGES[1]]}, "only turns of the assistant"),
    "reasoning of a user": ({"messages": [{**MESSAGES[0], "reasoning": "想"}, MESSAGES[1]]}, "no turn of an assistant"),
    "two thoughts": (turn(reasoning="想", thinking="另想"), "differ"),
    "channel": (turn(channel="analysis"), '"channel" is not known'),
    "arguments are no JSON": (
        calling({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
                              "malformed JSON"),
    "call without a name": (calling({"role": "assistant", "tool_calls": [{"function": {}}]}), "names no function"),
    "tools are no JSON": ({**ROWS["messages"], "tools": "weather"}, '"tools": malformed JSON'),
    "tools beside a text": ({"text": "文", "system": "令"}, '"system" has no known meaning beside "text"'),
    "answer to no call": (
        {"messages": [MESSAGES[0], {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "1"}]},
                      {"role": "tool", "content": "晴", "tool_call_id": "2"}]}, "which the assistant has not made"),
    "two marks": ({**ROWS["alpaca"], "label": True, "kto_tag": False}, "contradict each other"),
    "a mark beside a pair": ({"prompt": "问", "chosen": "好", "rejected": "坏", "label": 1},
                             '"label" has no known meaning'),
    "a mark of several answers": ({"instruction": "问", "output": ["好", "坏"], "label": 1}, "beside several answers"),
    "a mark and an open end": ({"messages": [*MESSAGES, MESSAGES[0]], "label": 1}, "must end with the answer"),
    "a mark of a call": ({"messages": [MESSAGES[0], {"role": "assistant", "tool_calls": [CALL]}], "label": 1},
                         "calls tools"),
    "label of a prompt of turns": ({"prompt": MESSAGES[:1], "label": "答"}, '"label" continues a "prompt"'),
    "chosen score is lower": ({"prompt": "问", "chosen": "好", "rejected": "坏", "score_chosen": 1,
                               "score_rejected": 3}, "lower score"),
    "one score": ({"prompt": "问", "chosen": "好", "rejected": "坏", "score_chosen": 1}, 'without "score_rejected"'),
    "margin below 0": ({"prompt": "问", "chosen": "好", "rejected": "坏", "margin": -1}, '"margin" is below 0'),
    "margin of no pair": ({**ROWS["alpaca"], "margin": 1},
                          '"margin" has no known meaning beside "instruction"+"output"'),
    "rejected alone": ({**ROWS["messages"], "rejected": "坏"}, '"rejected" has no known meaning'),
    "history of a chat": ({**ROWS["messages"], "history": [["a", "b"]]}, '"history" has no known meaning'),
    "prefix of a chat": ({**ROWS["messages"], "prefix": "答："}, '"prefix" has no known meaning'),
    "weight of a pair": ({"prompt": "问", "chosen": "好", "rejected": "坏", "weight": 0.5},
                         '"weight" has no known meaning'),
    "two system texts": ({**ROWS["messages"], "system": "甲", "system_prompt": "乙"}, "two that differ"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_cannot_be_followed_are_refused(name):
    row, message = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        detect(row)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_an_answer_of_a_record_is_worth():
    good, bad = Answer("好", 0.0, True), Answer("坏", 5.0, False)
    assert RankedRecord((USER("问"),), (bad, good)).best == good
    assert RankedRecord((USER("问"),), (bad,)).best == bad
    same = RankedRecord((USER("问"),), (Answer("同", 1.0), Answer("同", 0.0)))
    assert same.contradicts_itself and not same.has_preference
    assert not RankedRecord((USER("问"),), (Answer("同", 1.0), Answer("同", 1.0))).contradicts_itself
