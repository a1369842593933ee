"""transformers.Trainer with our checkpoints: whole, known by what made them, and gone on from to the same end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from keju.errors import UserError
from keju.training.adapters import has_adapters, load_adapters
from keju.training.checkpoints import STATE, checkpoint_aside
from keju.training.early_stopping import has_stopped_early
from keju.training.pickled_states import check_states
from keju.training.processes import wait_for_all
from keju.training.resuming import apply_settings, check_new_schedule
from keju.training.run_folder import RunFolder
from keju.training.stopping import Stopped, is_stopping, stopping_gracefully
from keju.training.weight_decay import decay_groups, decayed_names


class ResumableTrainer(Trainer):
    """Base of our trainers; before another Trainer among the bases it gives that one the same checkpoints.

    made_with: kept in checkpoints (see keju.training.resuming). has_new_schedule: optimizer and schedule of a
    checkpoint get the settings of this run.
    """

    def __init__(
        self, *args: Any, made_with: Mapping[str, Any] | None = None, has_new_schedule: bool = False, **kwargs: Any
    ) -> None:
        self.made_with, self.has_new_schedule = made_with, has_new_schedule
        self._written_to: Path | None = None  # a checkpoint that is being written
        super().__init__(*args, **kwargs)

    def train_in(self, folder: RunFolder) -> None:
        """Trains to the end, from the checkpoint that the run goes on from, if there is one.

        Raises:
            Stopped: a signal asked for it; the checkpoint is written.
        """
        if folder.checkpoint:
            check_states(folder.checkpoint)
        with stopping_gracefully():
            self.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
        if (step := self.state.global_step) < self.state.max_steps and is_stopping():
            raise Stopped(step, folder.path / f"checkpoint-{step}")
        folder.begin()  # a run that was resumed after its last step

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """By what modules are, where transformers goes by names, which miss the norms of many families."""
        return decayed_names(model)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.is_deepspeed_enabled and "optimizer" in self.args.hf_deepspeed_config.config:
            # What stands for an optimizer that DeepSpeed makes; the decay of the first group is that of its file.
            optimizer.params = decay_groups(self.model)
        return optimizer

    def saved_model(self) -> torch.nn.Module:
        """The model whose weights a checkpoint holds, without what is wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def _save_checkpoint(self, model, trial) -> None:
        """What transformers writes, but aside: it takes its name when it is whole (see keju.training.checkpoints)."""
        run, step, state = Path(self.args.output_dir), self.state.global_step, self.state
        best = state.best_model_checkpoint if state.best_global_step != step else None
        spare = [Path(best)] if best else []
        with checkpoint_aside(
            run, step, keep=self.args.save_total_limit, spare=spare, made_with=self.made_with
        ) as aside:
            self._written_to = aside
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._written_to = None
            if state.best_global_step == step:
                state.best_model_checkpoint = str(run / f"checkpoint-{step}")
            wait_for_all()
            if self.args.should_save:
                inner = aside / f"checkpoint-{step}"
                for file in inner.iterdir():
                    file.rename(aside / file.name)
                inner.rmdir()
                state.save_to_json(str(aside / STATE))

    def _get_output_dir(self, trial) -> str:
        """Where transformers makes and counts checkpoint folders."""
        return str(self._written_to or self.args.output_dir)

    def _load_best_model(self) -> None:
        """Puts the weights of the best checkpoint (--load_best_model_at_end) in the place of the last ones."""
        folder, state = Path(self.state.best_model_checkpoint), self.state
        if self.is_deepspeed_enabled:
            check_states(folder)
            is_strict = not has_adapters(self.saved_model())
            deepspeed_load_checkpoint(self.model_wrapped, str(folder), load_module_strict=is_strict)
        else:
            self._load_from_checkpoint(str(folder))
        name = self.args.metric_for_best_model
        if self.args.should_save:
            print(f"The best model is that of step {state.best_global_step} ({name} {state.best_metric:.4g}).")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        inner = self.saved_model()
        folder = Path(resume_from_checkpoint)
        if has_adapters(inner):
            load_adapters(inner, folder)
            return
        state = {}
        for shard in sorted(folder.glob("model*.safetensors")):
            state |= load_file(shard)
        missing, unexpected = inner.load_state_dict(state, strict=False)
        untied = set(missing) - set(getattr(inner, "all_tied_weights_keys", ()))
        if not state or unexpected or untied:
            raise UserError(f"--resume_from_checkpoint: the weights in {folder} do not fit this model")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not self.is_deepspeed_enabled and not (Path(checkpoint) / "optimizer.pt").is_file():
            raise UserError(
                f"--resume_from_checkpoint: {checkpoint} has no state of the optimizer (--save_only_model); a new run "
                f"starts from its weights with --model_name_or_path {checkpoint}"
            )
        if not self.has_new_schedule:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        check_new_schedule(deepspeed=self.is_deepspeed_enabled)
        groups = [dict(group) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        apply_settings(self.optimizer, self.lr_scheduler, groups)

    def _run_epoch(self, *args, **kwargs) -> None:
        """A run that goes on from the checkpoint of its last step has nothing left to train, but transformers would do
        at least one step more."""
        if self.state.global_step >= self.state.max_steps or has_stopped_early(self.callback_handler.callbacks):
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)
