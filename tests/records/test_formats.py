"""Every field layout becomes the record it should, and every wrong field is named."""

import pytest

from keju.records.formats import detect
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
    "system in the middle": ({"messages": [*MESSAGES, {"role": "system", "content": "甲"}]}, "a system turn must be"),
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
