"""Every kind of adapter: where it starts, how fast it learns, and that its folder fits the untouched base."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny_models import build_llama, build_pangu
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from keju.kernels.nf4 import NF4, dequantize_nf4
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.models.quantization import SETTINGS, check_4bit, nf4
from keju.models.saved_weights import NotAsSaved
from keju.training.adapters import add_lora, apply_loraplus, load_adapters, save_model, verify_model
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.stage_model import StageModel

IDS = torch.tensor([[1, 5, 6, 7, 8, 9]])
# bitsandbytes computes on the CPU with rows of multiples of 64 alone.
WIDE = {"llama": {"hidden_size": 64}, "pangu": {"hidden_size": 64}}
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_16", "use_rslora": True},
    "pissa_dora": {"init_lora_weights": "pissa", "use_dora": True},
}


@pytest.fixture(scope="module", params=["llama", "pangu"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    build = {"llama": build_llama, "pangu": build_pangu}[request.param]
    build(bos_token_id=1, eos_token_id=2, **WIDE[request.param]).save_pretrained(folder)
    return str(folder)


def adapted(base: str, *, in_4bit: bool = False, task_type: str = "CAUSAL_LM", **settings):
    torch.manual_seed(0)
    load = load_scalar_model if task_type == "SEQ_CLS" else load_causal_lm
    model = load(base, quantization=nf4(torch.float32) if in_4bit else None).requires_grad_(False)
    if settings.get("init_lora_weights") == "loftq":
        settings["original"] = load(base)
    return add_lora(model, task_type=task_type, r=4, alpha=8, **settings).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def optimizer_of(model, ratio: float = 1.0, kind=torch.optim.AdamW, **settings):
    optimizer = kind([parameter for parameter in model.parameters() if parameter.requires_grad], **settings)
    apply_loraplus(optimizer, model, ratio)
    return optimizer


def train(model, optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_folder_fits_the_untouched_base(base, tmp_path, kind):
    """As PEFT alone loads it, and transformers does (which overlooks the lengths of DoRA), and as we do."""
    model = adapted(base, **KINDS[kind])
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert_near(logits(model), logits(plain))
    train(model, optimizer_of(model, lr=1e-2))
    expected = logits(model)
    assert (expected - logits(plain)).abs().max() > 0.05
    save_model(model, tmp_path)
    assert_near(logits(PeftModel.from_pretrained(plain, tmp_path).eval()), expected)
    if not KINDS[kind].get("use_dora"):
        assert_near(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)
    assert_near(logits(load_causal_lm(str(tmp_path))), expected)


@pytest.mark.parametrize("kind", [*KINDS, "qlora", "loftq"])
def test_resumed_training_is_the_straight_one(base, tmp_path, kind):
    settings = {"qlora": {"in_4bit": True}, "loftq": {"in_4bit": True, "init_lora_weights": "loftq"}}
    settings = {**KINDS, **settings}[kind]
    straight = adapted(base, **settings)
    optimizer = optimizer_of(straight, ratio=4, lr=1e-2)
    train(straight, optimizer)
    save_model(straight, tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    train(straight, optimizer)
    resumed = adapted(base, **settings)
    load_adapters(resumed, tmp_path)
    optimizer = optimizer_of(resumed, ratio=4, lr=1e-2)
    optimizer.load_state_dict(state)
    train(resumed, optimizer)
    ours, theirs = straight.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(straight), logits(resumed))


def test_pissa_that_starts_otherwise_on_another_machine_goes_on_from_the_checkpoint(base, tmp_path):
    """The signs of singular vectors are arbitrary, and a randomised SVD is a little off: here, by another seed."""
    model = adapted(base, init_lora_weights="pissa_niter_16")
    train(model, optimizer_of(model, lr=1e-2))
    save_model(model, tmp_path)
    torch.manual_seed(1)
    other = add_lora(
        load_causal_lm(base).requires_grad_(False),
        task_type="CAUSAL_LM",
        r=4,
        alpha=8,
        init_lora_weights="pissa_niter_16",
    ).eval()
    assert (logits(other) - logits(model)).abs().max() > 0.05
    load_adapters(other, tmp_path)
    assert_near(logits(other), logits(model))
    save_model(other, tmp_path / "again")
    assert_near(logits(load_causal_lm(str(tmp_path / "again"))), logits(model))


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter", "pissa_dora", "bfloat16"])
def test_what_pissa_saves_is_read_back(base, tmp_path, kind):
    """The file holds other numbers than the memory: of twice the rank, for the untouched base."""
    model = adapted(base, **KINDS[kind if kind in KINDS else "pissa"])
    train(model, optimizer_of(model, lr=1e-2))
    if kind == "bfloat16":
        model.to(torch.bfloat16)
    save_model(model, tmp_path)
    verify_model(model, tmp_path)
    path, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    state, config = load_file(path), json.loads(settings.read_text())
    of_a, of_b = (min(name for name in state if f".lora_{part}." in name) for part in "AB")
    damaged = state[of_a].clone()
    damaged[-1, 3] += 0.25  # of the half that is taken out of the base
    shorter = {of_a: state[of_a][:-1].clone(), of_b: state[of_b][:, :-1].clone()}
    for wrong in ({of_a: damaged}, {of_b: -state[of_b]}, shorter):
        save_file(state | wrong, path, metadata={"format": "pt"})
        with pytest.raises(NotAsSaved, match=r"adapter_model.safetensors: .*(else than what was trained|the rank)"):
            verify_model(model, tmp_path)
    lost = {name: tensor for name, tensor in state.items() if name != of_b}
    save_file(lost, path, metadata={"format": "pt"})
    with pytest.raises(NotAsSaved, match="were not saved"):
        verify_model(model, tmp_path)
    save_file(state, path, metadata={"format": "pt"})
    settings.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 1.01}))
    with pytest.raises(NotAsSaved, match="else than what was trained"):
        verify_model(model, tmp_path)


def test_scales(base):
    def scale(**settings):
        layers = (layer for layer in adapted(base, **settings).modules() if isinstance(layer, LoraLayer))
        return {layer.scaling["default"] for layer in layers}

    assert scale() == {8 / 4} and scale(use_rslora=True) == {8 / 4**0.5}


def test_dora_trains_lengths(base):
    model = adapted(base, use_dora=True)
    lengths = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_magnitude_vector" in name}
    assert lengths
    train(model, optimizer_of(model, lr=1e-2))
    after = dict(model.named_parameters())
    assert all(not torch.equal(before, after[name]) for name, before in lengths.items())


def test_loraplus_moves_b_so_many_times_as_far(base):
    def moved(ratio):
        model = adapted(base, init_lora_weights="pissa")  # else A has no gradient in its first step
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        optimizer = optimizer_of(model, ratio, torch.optim.SGD, lr=1e-3)
        rates = sorted(group["lr"] for group in optimizer.param_groups)
        train(model, optimizer, steps=1)
        after = dict(model.named_parameters())
        return rates, {name: after[name].detach() - old for name, old in before.items()}

    (rates, once), (split, faster) = moved(1), moved(16)
    assert rates == [1e-3] and split == pytest.approx([1e-3, 16e-3])
    assert len(once) == len(faster) and any(".lora_B." in name for name in once)
    for name, step in once.items():
        assert step.any()
        times = 16 if ".lora_B." in name else 1
        torch.testing.assert_close(faster[name], times * step, atol=1e-5, rtol=2e-2)


def test_loraplus_needs_adapters_and_a_rate_above_zero(base):
    model = load_causal_lm(base)
    with pytest.raises(ValueError, match="--loraplus_lr_ratio: there are no adapters"):
        optimizer_of(model, 4, lr=1e-3)
    with pytest.raises(ValueError, match="--loraplus_lr_ratio: must be above 0"):
        optimizer_of(adapted(base), 0, lr=1e-3)


# -- 4 bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "loftq"}], ids=str)
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_CLS"])
def test_adapters_on_4_bits(base, tmp_path, settings, task_type):
    """Their folder says what base they need; whoever loads it gets that base, and can save it again."""
    model = adapted(base, in_4bit=True, task_type=task_type, **settings)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_model(model, tmp_path / "run")
    described = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert described["auto_mapping"] == {"base_quantization": SETTINGS}
    load = load_scalar_model if task_type == "SEQ_CLS" else load_causal_lm
    loaded = load(str(tmp_path / "run"))
    assert_near(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "again")
    assert_near(logits(load(str(tmp_path / "again"))), logits(model))
    if task_type == "CAUSAL_LM":
        plain = AutoModelForCausalLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(**SETTINGS))
        plain = check_4bit(plain)  # without it, the CPU would round
        assert_near(logits(PeftModel.from_pretrained(plain, tmp_path / "run")), logits(model))


def test_the_state_of_a_stage_on_4_bits_can_be_read_again(base):
    """DeepSpeed's checkpoints hold the whole module, and are read strictly."""
    model, other = (StageModel(adapted(base, in_4bit=True), LanguageModelObjective()) for _ in range(2))
    train(model.model, optimizer_of(model.model, lr=1e-2))
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other.model), logits(model.model))


def test_loftq_starts_nearer_to_the_weights_that_were_there(base):
    whole = load_causal_lm(base)
    lost = {}
    for start in ("default", "loftq"):
        model = adapted(base, in_4bit=True, init_lora_weights=start)
        for name, layer in model.named_modules():
            if not hasattr(layer, "lora_A") or not hasattr(layer.base_layer.weight, "quant_state"):
                continue
            weight = layer.base_layer.weight
            found = dequantize_nf4(NF4.from_bitsandbytes(weight.data, weight.quant_state))
            found = found + layer.get_delta_weight("default")
            wanted = whole.get_submodule(name.removeprefix("base_model.model.")).weight
            lost.setdefault(name, []).append((found - wanted).norm().item())
    assert lost and all(loftq < 0.97 * default for default, loftq in lost.values())


def test_what_does_not_go_together(base, tmp_path):
    with pytest.raises(ValueError, match="--init_lora_weights pissa"):
        adapted(base, in_4bit=True, init_lora_weights="pissa")
    with pytest.raises(ValueError, match="--init_lora_weights loftq"):
        adapted(base, init_lora_weights="loftq")
    with pytest.raises(ValueError, match="--use_dora"):
        adapted(base, in_4bit=True, init_lora_weights="loftq", use_dora=True)
    save_model(adapted(base), tmp_path / "plain")
    with pytest.raises(ValueError, match="^load_in_4bit: the adapters"):
        load_causal_lm(str(tmp_path / "plain"), quantization=nf4(torch.float32))
    with pytest.raises(ValueError, match="^load_in_4bit: random weights"):
        load_causal_lm(base, from_scratch=True, quantization=nf4(torch.float32))


def test_rows_that_bitsandbytes_reads_wrongly_are_refused(tmp_path):
    build_llama(hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^load_in_4bit: on the CPU.* has 32 inputs"):
        load_causal_lm(str(tmp_path), quantization=nf4(torch.float32))


def test_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr("keju.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^load_in_4bit: 4-bit weights need bitsandbytes"):
        nf4(torch.float32)
