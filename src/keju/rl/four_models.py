"""Actor, reference, critic and reward model: each by itself, as two in one, or all over one frozen base."""

from collections.abc import Callable
from typing import NamedTuple

from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from keju.errors import UserError, renamed_options
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.rl.arguments import options_of
from keju.rl.joint import add_value_output
from keju.rl.weight_sharing import share_weights, twin
from keju.training.adapters import add_lora, has_adapters, train_adapters


class FourModels(NamedTuple):
    """In joint optimisation critic and reward_model are one model of two outputs."""

    actor: PreTrainedModel
    reference: PreTrainedModel
    critic: PreTrainedModel
    reward_model: PreTrainedModel


class Lora(NamedTuple):
    """The adapters of actor and critic."""

    r: int
    alpha: int
    target_modules: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: str = "default"


class Bases(NamedTuple):
    """Folders of bases, where adapters in the place of a model name others."""

    actor: str | None = None
    reward: str | None = None
    critic: str | None = None


def load_models(
    actor_path: str,
    reward_path: str,
    critic_path: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    reward_tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "float32",
    joint: bool = False,
    shared_base: Lora | None = None,
    quantization: BitsAndBytesConfig | None = None,
    bases: Bases = Bases(),  # noqa: B008 (it cannot change)
    place: Callable[[str, PreTrainedModel], None] = lambda role, model: None,
) -> FourModels:
    """From checkpoint folders. reward_tokenizer: that of a reward model that does not read the actor's ids.

    The reference is the actor as it starts. The critic starts from `critic_path`; without one as the reward model,
    which already knows which text is good, or from the actor with a head of zeros where the reward model cannot be
    copied (it has another tokenizer, or other weights than a shared base). `joint`: the reward model is the critic.

    `shared_base`: the actor's weights become a frozen base. The reference is the base itself, actor and critic are
    adapters on it; so is a reward model that was trained as adapters on these weights. `quantization`: how that base is
    kept. `place` is called with each model, by its name in FourModels, as early as it is complete: it may move a model
    or cut it up before the next one is loaded. Raises UserError naming the flag.
    """
    if joint and reward_tokenizer is not None:
        raise UserError(
            "the reward model must have the actor's tokenizer and template", option="enable_joint_optimization"
        )
    if joint and critic_path is not None:
        raise UserError("with --enable_joint_optimization the reward model is the critic", option="critic_model_path")
    actor = load_causal_lm(actor_path, dtype=dtype, tokenizer=tokenizer, quantization=quantization, base=bases.actor)
    if shared_base is None:
        make_trainable(actor)
        reference = twin(actor)
        place("actor", actor)
        place("reference", reference)
    with renamed_options(**options_of("reward")):
        judge = load_scalar_model(
            reward_path,
            dtype=dtype,
            tokenizer=reward_tokenizer or tokenizer,
            require_head=True,
            base=bases.reward,
        )
    make_trainable(judge)
    can_copy = reward_tokenizer is None
    if shared_base is not None:
        if has_adapters(actor):
            raise UserError(
                f"{actor_path} holds adapters; --adapters merge makes a whole model of them", option="share_base"
            )
        reference = actor.requires_grad_(False)
        actor = _with_lora(twin(reference), shared_base, "CAUSAL_LM")
        can_copy = can_copy and has_adapters(judge) and share_weights(judge, reference)
        if joint and not can_copy:
            raise UserError(
                "a reward model that is trained jointly must be adapters on the actor's start", option="share_base"
            )
    if joint:
        add_value_output(judge)
        return _placed(FourModels(actor, reference, judge, judge), place)
    if critic_path is None and can_copy:
        return _placed(FourModels(actor, reference, twin(judge), judge), place)
    if shared_base is None:
        place("reward_model", judge)
    with renamed_options(**options_of("critic" if critic_path else "actor")):
        critic = load_scalar_model(
            critic_path or actor_path,
            dtype=dtype,
            tokenizer=tokenizer,
            quantization=quantization,
            base=bases.critic if critic_path else bases.actor,
        )
    if shared_base is None or has_adapters(critic):
        make_trainable(critic)
    if shared_base is not None:
        if not share_weights(critic, reference):
            raise UserError(
                f"the weights of {critic_path} are not those of the base, {actor_path}", option="share_base"
            )
        critic = critic if has_adapters(critic) else _with_lora(critic, shared_base, "SEQ_CLS")
    return _placed(FourModels(actor, reference, critic, judge), place)


def _placed(models: FourModels, place: Callable[[str, PreTrainedModel], None]) -> FourModels:
    for role, model in models._asdict().items():
        place(role, model)  # once more changes nothing
    return models


def make_trainable(model: PreTrainedModel) -> None:
    """All weights, or the adapters alone where the checkpoint holds some."""
    if has_adapters(model):
        train_adapters(model)
    else:
        model.requires_grad_(True)


def _with_lora(model: PreTrainedModel, lora: Lora, task_type: str) -> PreTrainedModel:
    return add_lora(model, task_type=task_type, **lora._asdict())
