"""Which models share what: one frozen base, two in one, or each by itself; and that sharing changes no number."""

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from tiny_models import BUILDERS, build_llama, build_scalar_model

from keju.models.loading import load_scalar_model
from keju.rl.four_models import Lora, load_models
from keju.rl.joint import reward_alone
from keju.rl.weight_sharing import share_weights, twin
from keju.training.adapters import add_lora
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

LORA = Lora(r=4, alpha=8)


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """sft: a causal model; reward: whole weights of its own; adapters: LoRA and head on sft; other: LoRA on another."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("sft", 0), ("another", 7)):
        build_llama(vocab_size=len(tokenizer), seed=seed).save_pretrained(folder / name)
    build_scalar_model(build_llama(len(tokenizer), seed=1), seed=2).save_pretrained(folder / "reward")
    for name, base in (("adapters", "sft"), ("other", "another")):
        model = load_scalar_model(str(folder / base))
        model = add_lora(model.requires_grad_(False), task_type="SEQ_CLS", r=4, alpha=8)
        torch.manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / name)
    for name in ("sft", "another", "reward", "adapters", "other"):
        tokenizer.save_pretrained(folder / name)
    return folder


def load(folders, tokenizer, reward="reward", **settings):
    return load_models(str(folders / "sft"), str(folders / reward), tokenizer=tokenizer, **settings)


def tensors(*models) -> int:
    """Numbers that the models hold in memory together."""
    storages = {parameter.data_ptr(): parameter.numel() for model in models for parameter in model.parameters()}
    return sum(storages.values())


def trained(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def batch() -> PackedBatch:
    return PackedBatch.from_trees([Segment([1, 5, 6], branches=[Segment([7, 8, 2], trained=True)])])


def outputs(model, ids=(1, 5, 6, 7, 8, 2)):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def test_each_by_itself(folders, tokenizer):
    actor, reference, critic, reward_model = load(folders, tokenizer)
    assert tensors(actor, reference, critic, reward_model) == sum(
        map(tensors, (actor, reference, critic, reward_model))
    )
    assert torch.equal(outputs(actor), outputs(reference))
    assert torch.equal(outputs(critic), outputs(reward_model))
    assert trained(actor) == tensors(actor) and trained(critic) == tensors(critic)


def test_one_base_for_all_four(folders, tokenizer):
    models = load(folders, tokenizer, "adapters", shared_base=LORA)
    base = tensors(models.reference)
    apart = load_scalar_model(str(folders / "adapters"))
    assert torch.equal(outputs(models.reward_model), outputs(apart))  # sharing changes no number
    assert torch.equal(outputs(models.critic), outputs(apart))  # starts as the reward model
    assert torch.equal(outputs(models.actor), outputs(models.reference))  # fresh adapters change nothing
    heads_and_adapters = tensors(apart) - tensors(load_scalar_model(str(folders / "sft")))
    adapters_of_actor = trained(models.actor)
    # Beside its head PEFT keeps the one that was there before; that one is frozen, so critic and reward share it.
    first_head = models.reference.config.hidden_size
    assert tensors(*models) == base + adapters_of_actor + 2 * heads_and_adapters + first_head
    assert trained(models.actor) < base / 3 and trained(models.critic) < base / 3


def test_training_adapters_moves_nobody_else(folders, tokenizer):
    models = load(folders, tokenizer, "adapters", shared_base=LORA)
    before = [outputs(model) for model in models]
    for model in (models.actor, models.critic):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        outputs_ = model(input_ids=torch.tensor([[1, 5, 6]])).logits
        outputs_.square().sum().backward()
        optimizer.step()
    after = [outputs(model) for model in models]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [False, True, False, True]


@pytest.mark.parametrize("reward", ["reward", "other"])
def test_a_reward_model_of_other_weights_keeps_them(folders, tokenizer, reward):
    models = load(folders, tokenizer, reward, shared_base=LORA)
    own = load_scalar_model(str(folders / reward))
    assert torch.equal(outputs(models.reward_model), outputs(own))
    assert tensors(models.reference, models.reward_model) == tensors(models.reference) + tensors(models.reward_model)
    # The critic cannot start as this reward model: it starts on the base, with a head of zeros.
    assert outputs(models.critic).abs().max() == 0
    backbone = tensors(models.reference) - models.reference.lm_head.weight.numel()
    own_weights = tensors(models.critic) - backbone
    assert tensors(models.reference, models.critic) == tensors(models.reference) + own_weights
    assert trained(models.critic) <= own_weights < backbone / 3


def test_a_base_with_adapters_is_refused(folders, tokenizer, tmp_path):
    from keju.models.loading import load_causal_lm

    add_lora(load_causal_lm(str(folders / "sft")), task_type="CAUSAL_LM", r=2, alpha=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^share_base: "):
        load_models(str(tmp_path), str(folders / "reward"), tokenizer=tokenizer, shared_base=LORA)
    # Without a shared base its adapters are what is trained, and the reference shares what rests.
    models = load_models(str(tmp_path), str(folders / "reward"), tokenizer=tokenizer)
    assert 0 < trained(models.actor) < tensors(models.actor) / 3
    assert tensors(models.actor, models.reference) == tensors(models.actor) + trained(models.actor)


def test_weights_are_shared_only_where_all_are_equal(folders):
    base, model = load_scalar_model(str(folders / "sft")), load_scalar_model(str(folders / "sft"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    assert not share_weights(model, base)
    assert tensors(base, model) == tensors(base) + tensors(model)
    assert share_weights(load_scalar_model(str(folders / "sft")), base)


@pytest.mark.parametrize("family", [name for name in BUILDERS if name != "llama"])
def test_every_family_shares_its_backbone(family):
    """ChatGLM2's holds the LM head, too, which a reward model has not."""
    base = BUILDERS[family](seed=0).requires_grad_(False)
    judge = add_lora(build_scalar_model(base).requires_grad_(False), task_type="SEQ_CLS", r=2, alpha=4)
    before = tensors(judge)
    assert share_weights(judge, base)
    adapters_and_heads = trained(judge) + judge.base_model.model.score.original_module.weight.numel()
    assert tensors(base, judge) == tensors(base) + adapters_and_heads
    assert tensors(judge) == before


def test_a_twin_shares_what_is_frozen():
    model = build_llama()
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    other = twin(model)
    assert tensors(model, other) == tensors(model) + trained(model)
    assert torch.equal(outputs(model), outputs(other))


@pytest.mark.parametrize(("reward", "shared_base"), [("reward", None), ("adapters", LORA), ("adapters", None)])
def test_joint_optimisation_is_one_model_of_two_outputs(folders, tokenizer, reward, shared_base, tmp_path):
    models = load(folders, tokenizer, reward, joint=True, shared_base=shared_base)
    assert models.critic is models.reward_model
    own = outputs(load_scalar_model(str(folders / reward)))
    for output in (0, 1):  # the value starts as the reward
        torch.testing.assert_close(
            models.critic(input_ids=torch.tensor([[1, 5, 6, 7, 8, 2]])).logits[:, output], own[:, 0]
        )
    with torch.no_grad():
        weight = next(p for n, p in models.critic.named_parameters() if n.startswith("score") and p.requires_grad)
        weight[1] += 1.0  # the value learns
    with reward_alone(models.critic) as state:
        models.critic.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(outputs(load_scalar_model(str(tmp_path), require_head=True)), own)
    assert models.critic.config.num_labels == 2 and outputs(models.critic).shape[-1] == 2


def test_joint_optimisation_needs_one_tokenizer_and_no_critic(folders, tokenizer):
    with pytest.raises(ValueError, match="^enable_joint_optimization: the reward model must have the actor's"):
        load(folders, tokenizer, joint=True, reward_tokenizer=build_char_tokenizer("x"))
    with pytest.raises(ValueError, match="^critic_model_path: "):
        load_models("a", "b", "c", tokenizer=tokenizer, joint=True)
    with pytest.raises(ValueError, match="^share_base: "):
        load(folders, tokenizer, "reward", joint=True, shared_base=LORA)


def test_a_critic_for_a_reward_model_of_another_tokenizer_starts_from_the_actor(folders, tokenizer):
    models = load(folders, tokenizer, reward_tokenizer=tokenizer)
    assert outputs(models.critic).abs().max() == 0
    assert torch.equal(models.critic.model.norm.weight, models.actor.model.norm.weight)
