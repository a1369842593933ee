"""Saving a PPO run: the folders of the models, and checkpoints from which a run goes on as if it had not been killed.

A checkpoint is written aside and takes its name only when it is whole; `trainer_state.json`, written last, marks it so.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keju.records.writing import write_json
from keju.rl.ppo_trainer import PPOTrainer
from keju.training.adapters import has_adapters, load_adapters

NAME = "checkpoint-{step}"
AVERAGE = "ema.safetensors"


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Model and tokenizer as from_pretrained loads them; each file is either the old one or whole."""
    aside = folder / ".saving"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        for file in aside.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_checkpoint(trainer: PPOTrainer, tokenizer: PreTrainedTokenizerBase, run: Path, keep: int) -> Path:
    """Writes `run`/checkpoint-<step> with all that the next step depends on; deletes all but the newest `keep`."""
    folder = run / NAME.format(step=trainer.step)
    aside = run / f".{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    for name, model in _models(trainer).items():
        model.save_pretrained(aside / name)
        tokenizer.save_pretrained(aside / name)
    if trainer.average is not None:
        save_file(trainer.average.weights, aside / AVERAGE)
    for name, optimizer in trainer.optimizers.items():
        torch.save(optimizer.state_dict(), aside / f"{name}_optimizer.pt")
    write_json(aside / "trainer_state.json", {"global_step": trainer.step, **_numbers(trainer)})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    for _, old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints of a run, oldest first."""
    return sorted((int(path.name.rpartition("-")[2]), path) for path in run.glob(NAME.format(step="[0-9]*")))


def load_checkpoint(trainer: PPOTrainer, folder: Path) -> None:
    """Brings a fresh trainer to where the checkpoint was. ValueError when it is not one of this run's models."""
    device = trainer.actor.device
    try:
        for name, model in _models(trainer).items():
            if has_adapters(model):
                load_adapters(model, folder / name)
                continue
            # Through from_pretrained, which undoes what save_pretrained does to names and shards.
            saved = type(model).from_pretrained(folder / name, dtype=model.dtype, use_safetensors=True)
            model.load_state_dict(saved.state_dict())
        if trainer.average is not None:
            trainer.average.weights = load_file(folder / AVERAGE, device=str(device))
        for name, optimizer in trainer.optimizers.items():
            state = torch.load(folder / f"{name}_optimizer.pt", map_location=device, weights_only=True)
            optimizer.load_state_dict(state)
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--resume_from_checkpoint: {folder} does not fit this run: {reason}") from error
    trainer.step = state["global_step"]
    for name, scheduler in trainer.schedulers.items():
        scheduler.load_state_dict(state["schedulers"][name])
    trainer.shaping.kl_controller.load_state_dict(state["kl_controller"])
    if trainer.shaping.moments is not None:
        trainer.shaping.moments.load_state_dict(state["moments"])


def _models(trainer: PPOTrainer) -> dict[str, PreTrainedModel]:
    return {"actor": trainer.actor, "critic": trainer.critic}


def _numbers(trainer: PPOTrainer) -> dict:
    return {
        "schedulers": {name: scheduler.state_dict() for name, scheduler in trainer.schedulers.items()},
        "kl_controller": trainer.shaping.kl_controller.state_dict(),
        "moments": trainer.shaping.moments.state_dict() if trainer.shaping.moments is not None else None,
    }
