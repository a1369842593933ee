"""TRL's GRPOTrainer with our checkpoints, in which everything random is seeded by (seed, step) or (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import Sampler
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from keju.rl.checkpoint import save_model
from keju.training.dropout import train_without_dropout
from keju.training.resumable_trainer import ResumableTrainer


class ResumableGRPOTrainer(ResumableTrainer, GRPOTrainer):
    """The start of the policy, which TRL reads again for its reference, and its tokenizer are those of the run; in a
    checkpoint are the policy as it is and what training goes on with."""

    def _get_train_sampler(self, dataset=None) -> Sampler:
        self._prompt_order = PromptSampler(
            dataset if dataset is not None else self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
        )
        return self._prompt_order

    def _run_epoch(self, model, epoch: int, *args, **kwargs) -> None:
        self._prompt_order.epoch = epoch
        super()._run_epoch(model, epoch, *args, **kwargs)

    def _prepare_inputs(self, generation_batch):
        """After transformers has put the policy into training mode; TRL's own `disable_dropout` finds modules alone,
        not what attention reads from the configuration."""
        if self.model.training:
            train_without_dropout(self.model)
            self.model.training = True  # by which TRL knows that it trains
        return super()._prepare_inputs(generation_batch)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As from_pretrained loads it; no pickle beside it."""
        save_model(self.saved_model(), self.processing_class, Path(output_dir or self.args.output_dir))

    def create_model_card(self, *args, **kwargs) -> None:
        """None: what made a model is in args.json."""


class PromptSampler(RepeatSampler):
    """TRL's order, but of each epoch by itself: TRL's own depends on how many came before in this process. And every
    prompt comes in every epoch: TRL leaves out those that fill no batch; here the epoch's first ones fill the last."""

    epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_samples, generator=self.generator).tolist()
        order += order[: self.num_batches * self.batch_size - self.num_samples]
        for start in range(0, len(order), self.batch_size):
            for _ in range(self.repeat_count):
                for index in order[start : start + self.batch_size]:
                    yield from [index] * self.mini_repeat_count

    def __len__(self) -> int:
        return self.num_batches * self.batch_size * self.mini_repeat_count * self.repeat_count

    @property
    def num_batches(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)
