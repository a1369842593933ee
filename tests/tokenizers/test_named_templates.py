"""Chat templates by name render what the models were trained on."""

from __future__ import annotations

import pytest
from char_tokenizer import build_char_tokenizer

from keju.encoding.encoder import Encoder
from keju.models.loading import load_tokenizer
from keju.records.record import ChatRecord, Message
from keju.tokenizers.named_templates import chat_template, template_names

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
HELPFUL = "<<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n"
# user 问, assistant 答, user 再, and the opening of the next answer
EXPECTED = {
    "chatml": "<|im_start|>user\n问<|im_end|>\n<|im_start|>assistant\n答<|im_end|>\n<|im_start|>user\n再<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama2": "<s>[INST] 问 [/INST] 答 </s><s>[INST] 再 [/INST]",
    "chinese-alpaca-2": f"<s>[INST] {HELPFUL}问 [/INST] 答 </s><s>[INST] 再 [/INST]",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\n问<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    "\n\n答<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n再<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\n",
    "vicuna": f"<s>{VICUNA}USER: 问 ASSISTANT: 答</s>USER: 再 ASSISTANT:",
    "chinese-alpaca": f"<s>{ALPACA}### Instruction:\n\n问\n\n### Response:\n\n答</s>\n\n"
    "### Instruction:\n\n再\n\n### Response:\n\n",
    "ziya": "<s><human>:问\n<bot>:答</s>\n<human>:再\n<bot>:",
    "atom": "<s>Human: 问\n</s><s>Assistant: 答\n</s><s>Human: 再\n</s><s>Assistant: ",
    "xverse": "Human: 问\n\nAssistant: 答</s>Human: 再\n\nAssistant: ",
    "internlm": "<s><|User|>:问<eoh>\n<|Bot|>:答<eoa>\n<|User|>:再<eoh>\n<|Bot|>:",
    "deepseek": "<s>User: 问\n\nAssistant: 答</s>User: 再\n\nAssistant:",
}
TURNS = [("user", "问"), ("assistant", "答"), ("user", "再")]
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "internlm": "<eoa>"}


@pytest.fixture
def tokenizer():
    return build_char_tokenizer(more="问答再系统\nABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz[]<>/|_:.,#' ")


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_every_template_is_tested():
    assert sorted(EXPECTED) == template_names()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_template_renders_the_published_format(tokenizer, name):
    tokenizer.chat_template = chat_template(name)

    def render(*turns, **settings):
        return tokenizer.apply_chat_template(messages(*turns), tokenize=False, **settings)

    assert render(*TURNS, add_generation_prompt=True) == EXPECTED[name]
    answered = render(*TURNS, ("assistant", "答"))
    assert answered.startswith(EXPECTED[name]) and answered.rstrip().endswith(ENDS.get(name, "</s>"))
    with_system = render(("system", "系统"), *TURNS, add_generation_prompt=True)
    assert "系统" in with_system and with_system.endswith(render(*TURNS, add_generation_prompt=True)[-8:])


@pytest.mark.parametrize("name", EXPECTED)
def test_each_answer_is_trained_with_its_end(tokenizer, name):
    tokenizer.add_special_tokens({"additional_special_tokens": list(ENDS.values())})
    tokenizer.chat_template = chat_template(name)
    record = ChatRecord(tuple(Message(*turn) for turn in [*TURNS, ("assistant", "答")]), "f:1")
    (tree,) = Encoder(tokenizer, 600).sft_trees(record)
    trained = [token for token, flag in zip(tree.tokens, tree.trained, strict=True) if flag]
    text = "".join(tokenizer.convert_ids_to_tokens(trained))
    end = ENDS.get(name, "</s>")
    assert text.replace(" ", "").replace("\n", "") == f"答{end}答{end}"


def test_a_tokenizer_is_loaded_with_a_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), chat_template="vicuna").chat_template == chat_template("vicuna")
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0]['content'] }}")
    assert load_tokenizer(str(tmp_path), chat_template=str(own)).chat_template == "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="^chat_template: nosuch: neither a file nor one of atom, chatml,"):
        load_tokenizer(str(tmp_path), chat_template="nosuch")
