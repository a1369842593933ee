"""A whole Llama, LoRA on all of its linear layers: loss, gradients of the adapters and their norm; no optimizer step.

One packed row of several documents, which do not see each other. All providers share one set of weights; each has
modules of its own over them. Loss and gradient norm must agree with those of transformers' SDPA (its eager attention
may need more memory than there is).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager

import torch
from harness.case import STEP, Case, Provider, Setting, Work
from harness.peers import liger
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama import modeling_llama

from keju.kernels.column_mask import ColumnMask
from keju.kernels.linear_cross_entropy import linear_cross_entropy
from keju.models import attention
from keju.models.accelerate import accelerate

SIZES = {
    "full": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 131072,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4000,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 100,
    },
}
LENGTHS = {"full": 2048, "small": 256, "tiny": 32}
DOCUMENTS = 4  # of one length, in a row
RANK = 16


def cases(setting: Setting) -> list[Case]:
    shape, length = SIZES[setting.size], LENGTHS[setting.size]
    config = LlamaConfig(**shape, max_position_embeddings=length, tie_word_embeddings=False, use_cache=False)

    def build():
        model = _lora_model(config, setting)
        return _packed_row(config, length, setting.device), {
            "keju": _ours(model, length),
            "sdpa": _transformers(model, "sdpa"),
            "eager": _transformers(model, "eager"),
            "liger": liger(setting, lambda: _liger(model)),
        }

    name = f"{shape['num_hidden_layers']} layers of {shape['hidden_size']}, row of {length} tokens, rank {RANK}"
    work = {STEP: Work(flops=_flops(config, length))}
    return [Case(name, setting.dtype, work, build, widen=False, reference="sdpa", tokens=length)]


def _flops(config: LlamaConfig, length: int) -> float:
    """Frozen weights take part in two products and not in three; the adapters' are left out of the account."""
    kv_size = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    of_layer = config.hidden_size * (2 * config.hidden_size + 2 * kv_size + 3 * config.intermediate_size)
    weights = config.num_hidden_layers * of_layer + config.hidden_size * config.vocab_size
    pairs = length * (length // DOCUMENTS + 1) / 2
    return 4 * length * weights + 3.5 * 4 * pairs * config.hidden_size * config.num_hidden_layers


def _lora_model(config: LlamaConfig, setting: Setting) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False).get_base_model()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # 0 at first, and with it the gradients of all A
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def _packed_row(config: LlamaConfig, length: int, device: str) -> dict[str, torch.Tensor]:
    """input_ids, position_ids and labels, [1, length]; the first token of a document is predicted by nothing."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, length), generator=generator)
    positions = torch.arange(length)[None] % (length // DOCUMENTS)
    labels = ids.masked_fill(positions == 0, -100)
    return {"input_ids": ids.to(device), "position_ids": positions.to(device), "labels": labels.to(device)}


def _twin(model: torch.nn.Module) -> torch.nn.Module:
    """The same weights in other modules."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _step(model: torch.nn.Module, loss: Callable[..., torch.Tensor]) -> Provider:
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(**inputs):
        try:
            value = loss(**inputs)
            value.backward()
            return value.detach(), torch.stack([parameter.grad.float().norm() for parameter in adapters]).norm()
        finally:  # the gradients are the other providers', too
            model.zero_grad()

    return Provider(run)


def _transformers(model: torch.nn.Module, attention: str) -> Provider:
    model = _twin(model)
    model.set_attn_implementation(attention)
    return _step(model, lambda **inputs: model(**inputs).loss)


def _liger(model: torch.nn.Module) -> Provider:
    from liger_kernel.transformers import apply_liger_kernel_to_llama, liger_rotary_pos_emb

    model = _twin(model)
    model.set_attn_implementation("sdpa")
    # It patches the module of transformers as well, which the other providers use.
    with _patched(apply_rotary_pos_emb=None, LlamaRMSNorm=None, LlamaMLP=None):
        apply_liger_kernel_to_llama(model=model)

    def loss(**inputs):
        with _patched(apply_rotary_pos_emb=liger_rotary_pos_emb):
            return model(**inputs).loss

    return _step(model, loss)


@contextmanager
def _patched(**names):
    """Functions and classes of modeling_llama for a while (None: as they are), and what was there before after it."""
    before = {name: getattr(modeling_llama, name) for name in names}
    try:
        for name, value in names.items():
            setattr(modeling_llama, name, value or before[name])
        yield
    finally:
        for name, value in before.items():
            setattr(modeling_llama, name, value)


def _ours(model: torch.nn.Module, length: int) -> Provider:
    model = _twin(model)
    model.set_attn_implementation(attention.NAME)
    accelerate(model)

    def loss(input_ids, position_ids, labels):
        each = length // DOCUMENTS
        index = torch.arange(length, device=input_ids.device)
        # Made anew in every step, as it has to be in training.
        mask = ColumnMask(index, (index // each + 1) * each)
        hidden = model.model(input_ids=input_ids, position_ids=position_ids, column_mask=mask).last_hidden_state
        target = labels[0, 1:]
        predicted = target != -100
        return linear_cross_entropy(hidden[0, :-1][predicted], model.lm_head.weight, target[predicted])

    return _step(model, loss)
