"""Published folders of InternLM and XVERSE, which are Llama under another model_type, and of Llama with code beside."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from keju.models.backbone import backbone_of
from keju.models.loading import load_causal_lm

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "vocab_size": 97,
}
# The fields of published config.json files, at toy size.
COMMON = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    **SIZE,
}
PUBLISHED = {
    "internlm-7B": COMMON
    | {
        "model_type": "internlm",
        "architectures": ["InternLMForCausalLM"],
        "bias": True,
        "rotary": {"base": 10000, "type": "dynamic"},
        "auto_map": {
            "AutoConfig": "configuration_internlm.InternLMConfig",
            "AutoModel": "modeling_internlm.InternLMForCausalLM",
            "AutoModelForCausalLM": "modeling_internlm.InternLMForCausalLM",
        },
    },
    "internlm-20B": COMMON
    | {
        "model_type": "internlm",
        "architectures": ["InternLMForCausalLM"],
        "bias": False,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm.InternLMForCausalLM"},
    },
    "xverse-13B": COMMON
    | {
        "model_type": "xverse",
        "architectures": ["XverseForCausalLM"],
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "auto_map": {"AutoModelForCausalLM": "modeling_xverse.XverseForCausalLM"},
    },
    # Atom-7B: Llama by name, with code beside it
    "atom-7B": COMMON
    | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "model_atom.LlamaForCausalLM"},
    },
}
CLASSES = {
    "internlm-7B": "InternLMForCausalLM",
    "internlm-20B": "InternLMForCausalLM",
    "xverse-13B": "XverseForCausalLM",
    "atom-7B": "LlamaForCausalLM",
}


@pytest.fixture(params=PUBLISHED)
def published(request, tmp_path, monkeypatch):
    """(name, folder, the same model as a plain Llama): the folder has code that must not run, and rotary tables."""
    name = request.param
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("asked whether to run code"))
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]))
    for file in ("configuration_internlm", "modeling_internlm", "modeling_xverse", "model_atom"):
        (folder / f"{file}.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
    torch.manual_seed(0)
    scaling = {"rope_type": "dynamic", "factor": 1.0} if name == "internlm-7B" else None
    llama = LlamaForCausalLM(LlamaConfig(**SIZE, attention_bias=name == "internlm-7B", rope_scaling=scaling)).eval()
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.normal_(std=0.3)
    tables = {f"model.layers.{index}.self_attn.rotary_emb.inv_freq": torch.ones(4) for index in range(2)}
    save_file({**llama.state_dict(), **tables}, folder / "model.safetensors", metadata={"format": "pt"})
    return name, folder, llama


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of two rows, one of them padded on the left."""
    ids = torch.randint(4, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    return ids, mask


@torch.no_grad()
def test_a_published_folder_is_llama(published):
    name, folder, llama = published
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == CLASSES[name]
    ids, mask = rows()
    ours, theirs = (each(input_ids=ids, attention_mask=mask).logits for each in (model, llama))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=0, rtol=0)
    greedy = {"input_ids": ids, "attention_mask": mask, "do_sample": False, "max_new_tokens": 5, "eos_token_id": None}
    assert torch.equal(model.generate(**greedy, pad_token_id=0), llama.generate(**greedy, pad_token_id=0))


@torch.no_grad()
def test_saved_and_loaded_again(published, tmp_path):
    name, folder, llama = published
    load_causal_lm(str(folder)).save_pretrained(tmp_path / "saved")
    again = load_causal_lm(str(tmp_path / "saved"))
    assert type(again).__name__ == CLASSES[name]
    saved = {key: tensor for key, tensor in again.state_dict().items()}
    assert saved.keys() == llama.state_dict().keys()
    assert all(torch.equal(saved[key], tensor) for key, tensor in llama.state_dict().items())
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert fields["model_type"] == PUBLISHED[name]["model_type"]
    if name != "atom-7B":  # transformers' own config class keeps it; nothing follows it
        assert "auto_map" not in fields


def test_backbone_and_reward_model(published):
    name, folder, llama = published
    reward = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    backbone = AutoModel.from_pretrained(folder)
    assert type(reward).__name__ == CLASSES[name].replace("ForCausalLM", "ForSequenceClassification")
    assert (
        type(backbone).__name__ == CLASSES[name].replace("ForCausalLM", "Model") == type(backbone_of(reward)).__name__
    )
    for key, tensor in llama.model.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], tensor) and torch.equal(reward.model.state_dict()[key], tensor)


def test_rotary_of_internlm():
    """Within max_position_embeddings, and beyond: the formula of dynamic NTK in float64."""
    model = AutoModel.from_config(
        AutoConfig.for_model(**PUBLISHED["internlm-7B"] | {"rotary": {"base": 500, "type": "dynamic"}})
    )
    for length in (20, 48):
        cos, sin = model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
        base = 500.0 if length <= 32 else 500 * (length / 32) ** (8 / 6)
        angles = torch.arange(length, dtype=torch.float64)[:, None] / base ** (torch.arange(0, 8, 2).double() / 8)
        angles = torch.cat([angles, angles], dim=-1)[None]
        torch.testing.assert_close(cos.double(), angles.cos(), atol=1e-5, rtol=0)
        torch.testing.assert_close(sin.double(), angles.sin(), atol=1e-5, rtol=0)


def test_plain_rotary_of_internlm():
    config = AutoConfig.for_model(**PUBLISHED["internlm-7B"] | {"rotary": {"base": 500, "type": "origin"}})
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500}


def test_the_first_internlm_says_nothing_of_its_biases():
    fields = {key: value for key, value in PUBLISHED["internlm-7B"].items() if key != "bias"}
    model = AutoModel.from_config(AutoConfig.for_model(**fields))
    attention = model.layers[0].self_attn
    assert all(getattr(attention, f"{name}_proj").bias is not None for name in "qkvo")


@pytest.mark.parametrize(
    ("model_type", "field", "message"),
    [
        ("internlm", {"rotary": {"base": 10000, "type": "yarn"}}, "rotary type 'yarn' is not supported"),
        ("xverse", {"quantization_bit": 8}, "quantization_bit=8 is not supported"),
    ],
)
def test_what_is_refused(model_type, field, message):
    with pytest.raises(ValueError, match=message):
        AutoConfig.for_model(model_type, **field)


def test_the_tokenizer_of_internlm(shared, tmp_path):
    """One SentencePiece model with <s> in front. (The vocabulary is that of Llama: InternLM's is not at hand.)"""
    from sentencepiece import SentencePieceProcessor

    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["internlm-7B"]))
    source = shared / "data" / "tokenizers" / "llama" / "tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    reference = ["tokenization_internlm.InternLMTokenizer", None]
    fields = {
        "auto_map": {"AutoTokenizer": reference},
        "tokenizer_class": "InternLMTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pieces = SentencePieceProcessor(str(source))
    for text in ("今天天气不错。", " a  b\n\ndef f(x):\n    return x  # 😀"):
        assert tokenizer.encode(text) == [1, *pieces.encode(text)]
    assert tokenizer.pad_token == "</s>"


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("name", ["xverse-13B", "atom-7B"])
def test_a_byte_level_tokenizer_json_is_read_as_it_is(name, tokenizer_class, tmp_path):
    """As in folders of DeepSeek-LLM (which names a Llama tokenizer), Llama 3 and XVERSE."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["今天天气不错，我们去北京。 Hello world 1234\n  def f(x): return x"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    fields = {"tokenizer_class": tokenizer_class, "bos_token": special[0], "eos_token": special[1], "legacy": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("今天天气不错。 Hello  world 123", " a  b\n\ndef f(x):\n    return x  # 😀"):
        ids = loaded.encode(text)
        assert ids == tokenizer.encode(text).ids and ids[0] == 0
        assert loaded.decode(ids, skip_special_tokens=True) == text
