"""Saving a PPO run: folders of models, and checkpoints from which a run goes on as if it had not been killed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keju.errors import UserError
from keju.models.gathering import in_pieces, whole_state_dict
from keju.models.saved_weights import save_pretrained, verify_saved
from keju.records.writing import whole_files, write_json
from keju.rl.learners import Learner
from keju.rl.ppo_trainer import PPOTrainer
from keju.training.adapters import has_adapters, load_adapters
from keju.training.checkpoints import STATE, checkpoint_aside, read_manifest
from keju.training.pickled_states import check_states
from keju.training.processes import is_main_process, process_index
from keju.training.resuming import OPTIMIZER, apply_settings, changed_settings, check_new_schedule

ENGINE = "deepspeed"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Model and tokenizer as from_pretrained loads them; each file is either the old one or whole.

    state: other weights than the model's own. All processes must call, the first one writes.
    """
    state = whole_state_dict(model) if state is None else state
    if not is_main_process():
        return
    with whole_files(folder) as aside:
        save_pretrained(model, aside, state)
        verify_saved(model, aside, state)
        tokenizer.save_pretrained(aside)


def save_checkpoint(
    trainer: PPOTrainer, tokenizer: PreTrainedTokenizerBase, run: Path, keep: int, made_with: Mapping[str, Any] | None
) -> None:
    """Writes `run`/checkpoint-<step> with all that the next step depends on; deletes all but the newest `keep`.

    made_with: see keju.training.resuming.
    """
    with checkpoint_aside(run, trainer.step, keep=keep, made_with=made_with) as aside:
        for name, learner in trainer.learners.items():
            save_model(learner.model, tokenizer, aside / name)
            if learner.engine is not None:
                learner.engine.save_checkpoint(str(aside / name), tag=ENGINE, exclude_frozen_parameters=True)
            else:
                torch.save(learner.optimizer.state_dict(), aside / f"{name}_optimizer.pt")
        if trainer.average is not None and (is_main_process() or in_pieces(trainer.actor)):
            save_file(trainer.average.weights, aside / _average_file(trainer))
        if is_main_process():
            write_json(aside / STATE, {"global_step": trainer.step, **_numbers(trainer)})


def load_checkpoint(trainer: PPOTrainer, folder: Path, made_with: Mapping[str, Any]) -> None:
    """Brings a trainer to where the checkpoint was. UserError when it is not one of this run's models.

    made_with: what decides this run (RunFolder.made_with). Where the checkpoint was made with other settings, as those
    before --resume_with_changes were, the ones of this run hold.
    """
    known = read_manifest(folder).get("made_with")
    changed = changed_settings(folder, known, made_with, accept=True)
    has_new_schedule = not OPTIMIZER.isdisjoint(changed)
    if has_new_schedule:
        check_new_schedule(deepspeed=any(learner.engine is not None for learner in trainer.learners.values()))
    groups = {name: [dict(g) for g in learner.optimizer.param_groups] for name, learner in trainer.learners.items()}
    kl_coef = trainer.shaping.kl_controller.coef
    try:
        for name, learner in trainer.learners.items():
            _load_learner(learner, folder, name)
        if trainer.average is not None:
            saved = load_file(folder / _average_file(trainer))
            trainer.average.weights = {
                name: saved[name].to(average.device) for name, average in trainer.average.weights.items()
            }
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} does not fit this run: {reason}", option="resume_from_checkpoint") from error
    trainer.step = state["global_step"]
    for name, learner in trainer.learners.items():
        learner.scheduler.load_state_dict(state["schedulers"][name])
        if has_new_schedule:
            apply_settings(learner.optimizer, learner.scheduler, groups[name])
    trainer.shaping.kl_controller.load_state_dict(state["kl_controller"])
    if "kl_coef" in changed:
        trainer.shaping.kl_controller.coef = kl_coef
    if trainer.shaping.moments is not None:
        trainer.shaping.moments.load_state_dict(state["moments"])


def _load_learner(learner: Learner, folder: Path, name: str) -> None:
    optimizer_file = folder / f"{name}_optimizer.pt"
    if learner.engine is not None:
        if not (folder / name / ENGINE).is_dir():
            raise UserError("it was written without --deepspeed")
        check_states(folder / name)
        learner.engine.load_checkpoint(
            str(folder / name), tag=ENGINE, load_module_strict=False, load_lr_scheduler_states=False
        )
        return
    if not optimizer_file.is_file():
        raise UserError("it was written with --deepspeed")
    model = learner.model
    if has_adapters(model):
        load_adapters(model, folder / name)
    else:
        # Through from_pretrained, which undoes what save_pretrained does to names and shards.
        saved = type(model).from_pretrained(folder / name, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(saved.state_dict())
    state = torch.load(optimizer_file, map_location=model.device, weights_only=True)
    learner.optimizer.load_state_dict(state)


def _average_file(trainer: PPOTrainer) -> str:
    """One for all processes, or one for each where ZeRO-3 keeps the actor in pieces."""
    return f"ema-{process_index()}.safetensors" if in_pieces(trainer.actor) else "ema.safetensors"


def _numbers(trainer: PPOTrainer) -> dict:
    return {
        "schedulers": {name: learner.scheduler.state_dict() for name, learner in trainer.learners.items()},
        "kl_controller": trainer.shaping.kl_controller.state_dict(),
        "moments": trainer.shaping.moments.state_dict() if trainer.shaping.moments is not None else None,
    }
