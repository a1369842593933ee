"""transformers.Trainer over token trees: its loop, schedules, checkpoints and DeepSpeed; our batches and loss."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from keju.errors import UserError
from keju.models.backbone import unwrapped
from keju.models.evaluating import evaluating
from keju.models.generation import name_special_tokens
from keju.records.writing import whole_files
from keju.training.adapters import apply_loraplus, save_model, verify_model
from keju.training.crash import NonFiniteLoss, name_records
from keju.training.dropout import Dropout
from keju.training.objectives.objective import Objective
from keju.training.processes import is_main_process, num_processes, own_parts, sum_figures, sum_over_processes
from keju.training.resumable_trainer import ResumableTrainer
from keju.training.sampler import TreeBatchSampler
from keju.training.stage_model import StageModel
from keju.training.whole_batch import WholeBatch, whole_batches
from keju.trees.lazy_trees import lengths_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack
from keju.trees.segment import Segment


class TreeTrainer(ResumableTrainer):
    """Trains `model` with `objective` on `train_trees`.

    A forward pass takes one pack: at most `token_budget` tokens and `per_device_train_batch_size` trees. The loss of an
    optimizer step is the mean over the items (tokens or pairs) of its whole global batch: over all accumulation steps
    and processes, however these split it. What a loss sorts or estimates over a batch it does over all of it.

    dropout, autocast: see StageModel. made_with, has_new_schedule: see ResumableTrainer.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the items of the whole accumulated batch

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        args: TrainingArguments,
        train_trees: Sequence[Segment],
        *,
        token_budget: int,
        eval_trees: Sequence[Segment] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        where: Sequence[str] | None = None,
        callbacks: list | None = None,
        loraplus_lr_ratio: float = 1.0,
        dropout: Dropout = "all",
        autocast: torch.dtype | None = None,
        made_with: Mapping[str, Any] | None = None,
        has_new_schedule: bool = False,
    ) -> None:
        if loraplus_lr_ratio != 1 and args.deepspeed and "optimizer" in args.hf_deepspeed_config.config:
            raise UserError("--loraplus_lr_ratio: the file of --deepspeed has an optimizer of its own; leave that out")
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.objective = objective
        self.token_budget = token_budget
        self.where = where
        self.metric_sums: dict[str, torch.Tensor] = {}
        self._new_tokens = 0  # of this process, not yet in the state
        # Not as the Trainer's processing_class, whose eos it would make the end of generation: some families end
        # answers in another way.
        self.tokenizer = tokenizer
        if tokenizer is not None:
            name_special_tokens(unwrapped(model), tokenizer)
        super().__init__(
            model=StageModel(model, objective, dropout=dropout, autocast=autocast),
            args=args,
            train_dataset=train_trees,
            eval_dataset=eval_trees,
            data_collator=self.collate,
            callbacks=callbacks,
            made_with=made_with,
            has_new_schedule=has_new_schedule,
        )
        if callbacks:
            self.remove_callback(PrinterCallback)  # ours report; without any, transformers prints its dicts

    # -- batches -----------------------------------------------------------------------------------------------------

    def collate(self, trees: list[Segment]) -> dict:
        batch = PackedBatch.from_trees(trees)
        return {"batch": batch, "num_items": self.objective.num_items(batch)}

    def get_train_dataloader(self) -> DataLoader:
        sampler = TreeBatchSampler(
            lengths_of(self.train_dataset),
            self.token_budget,
            max_trees=self.args.per_device_train_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            num_processes=self.args.world_size,
            process_index=self.args.process_index,
        )
        return _EpochLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            in_order=self.args.dataloader_in_order,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    # -- loss --------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Items of the whole optimizer step: over its accumulation steps and over all processes."""
        count = torch.tensor(float(sum(sample["num_items"] for sample in batch_samples)), device=device)
        return sum_over_processes(count).clamp(min=1)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The packs of an optimizer step, each with what its loss must know of the others."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        whole = self._whole_batches(((sample["batch"], True) for sample in samples), len(samples))
        return [{**sample, "whole": known} for sample, known in zip(samples, whole, strict=True)], num_items

    def _whole_batches(self, packs: Iterable[tuple[PackedBatch, bool]], count: int) -> list[WholeBatch | None]:
        """For each of the `count` packs of this process (and whether it counts), what its loss must know of all packs.

        Where that depends on the model, each pack is computed once more, without gradients and without dropout.
        """
        source = self.objective.facts_from
        if source == "nothing" or count * num_processes() < 2:
            return [None] * count
        passes, facts = self._passes, []
        is_training = self.model.training  # an engine around it does not tell
        with evaluating(self.model), torch.no_grad():
            for batch, counts in packs:
                read = self.objective.facts
                found = passes(batch, read) if source == "model" else read(None, batch).to(self.args.device)
                if is_training and not found.isfinite().all():
                    self._report_non_finite(batch)  # before the losses of all packs take it in
                facts.append(found if counts else found[:0])
        return whole_batches(facts)

    @property
    def _passes(self) -> torch.nn.Module:
        """What computes passes outside of training steps."""
        return self.model_wrapped if self.is_deepspeed_enabled else self.model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(inputs["batch"], whole=inputs["whole"])
        # Gradients are averaged over processes; together with this factor that makes a sum over all of them.
        loss = output.loss_sum * self.args.world_size / num_items_in_batch
        if not torch.isfinite(loss.detach()):
            self._report_non_finite(inputs["batch"])
        if model.training:
            self._collect(output.metrics)
            self._new_tokens += inputs["batch"].num_tokens
        return (loss, output) if return_outputs else loss

    def _report_non_finite(self, batch: PackedBatch) -> None:
        records = ""
        if self.where is not None:
            starts = batch.segment_start[batch.segment_parent < 0].tolist()
            ends = batch.segment_end[batch.segment_parent < 0].tolist()
            ids = batch.input_ids[0].tolist()
            heads = [tuple(ids[start : min(end, start + 64)]) for start, end in zip(starts, ends, strict=True)]
            found: dict[tuple[int, ...], str] = {}
            for tree, place in zip(self.train_dataset, self.where, strict=True):
                if (head := tuple(tree.tokens[:64])) in heads:
                    found[head] = place
            records = name_records(found[head] for head in heads if head in found)
        raise NonFiniteLoss(self.state.global_step + 1, records)

    def _collect(self, metrics: dict) -> None:
        for name, (total, count) in metrics.items():
            pair = torch.stack([total.detach().double(), torch.as_tensor(count, device=total.device).double()])
            self.metric_sums[name] = self.metric_sums[name] + pair if name in self.metric_sums else pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._averages(self.metric_sums))
            self.metric_sums = {}
            self._count_tokens()
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def _count_tokens(self) -> None:
        """Brings the state, which checkpoints keep for all processes, up to date."""
        tokens = torch.tensor(self._new_tokens, device=self.args.device)
        self.state.num_input_tokens_seen += int(sum_over_processes(tokens))
        self._new_tokens = 0

    def _averages(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        averages = {}
        for name, pair in sums.items():
            total, count = sum_over_processes(pair).tolist()
            if count:  # a mean of nothing is no figure
                averages[name] = total / count
        return averages

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        super().create_optimizer(model)
        if is_new:
            apply_loraplus(self.optimizer, self.model, self.loraplus_lr_ratio)
        return self.optimizer

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss per item and the objective's metrics over the evaluation trees, which the processes share out."""
        start = time.perf_counter()
        model = self._passes
        trees = self.eval_dataset if eval_dataset is None else eval_dataset
        parts = own_parts(pack(lengths_of(trees), self.token_budget, self.args.per_device_eval_batch_size))
        sums: Counter[tuple[str, int]] = Counter()

        def packs() -> Iterator[tuple[PackedBatch, bool]]:
            for members, counts in parts:
                yield PackedBatch.from_trees([trees[index] for index in members]), counts

        with evaluating(self.model), torch.no_grad():
            for (batch, counts), whole in zip(packs(), self._whole_batches(packs(), len(parts)), strict=True):
                output = model(batch, whole=whole)
                found = {"loss": (output.loss_sum, self.objective.num_items(batch)), **output.metrics}
                for name, pair in found.items():
                    for place, number in enumerate(pair):
                        sums[name, place] += float(number) * counts
        sums = sum_figures(sums, self.args.device)
        metrics = {
            f"{metric_key_prefix}_{name}": sums[name, 0] / max(sums[name, 1], 1)
            for name, place in sums
            if not place and (name == "loss" or sums[name, 1])
        }
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def saved_model(self) -> torch.nn.Module:
        return super().saved_model().model

    def _save_checkpoint(self, model, trial) -> None:
        self._count_tokens()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The model as a folder that from_pretrained loads, without the wrapper around it; no pickle beside it."""
        folder = Path(output_dir or self.args.output_dir)
        inner = self.saved_model()
        # DeepSpeed hands a copy of every tensor over, which would save tied weights twice; it is needed where ZeRO-3
        # keeps the model in pieces.
        state = self.model.inner_state_dict(state_dict) if state_dict and is_deepspeed_zero3_enabled() else None
        if not is_main_process():  # transformers calls this in every process
            return
        with whole_files(folder) as aside:
            save_model(inner, aside, state)
            verify_model(inner, aside, state)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(aside)


class _EpochLoader(DataLoader):
    """Hands Trainer's set_epoch on to the batch sampler, which shuffles by it."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
