"""Rehearses a training step of a stage with tensors that have no memory, and keeps what was alive when.

The models, the packed rows, the objectives, PPO's trainer and the optimizers are those of the stages. On a GPU the
kernels of keju.kernels take their Triton route: they allocate what they would there, and none is launched.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack

import torch

from keju.errors import UserError
from keju.kernels.dispatch import rehearsal
from keju.planning.allocations import PARAMETERS, Allocations
from keju.planning.policy import rehearse_policy
from keju.planning.step import Rehearsal, Step, add_adapters, counts, fake_model, mark_optimizer, precision
from keju.stages.spec import stages, stages_with
from keju.training.stage_model import StageModel
from keju.trees.packed_batch import PackedBatch


def rehearse(step: Step) -> Rehearsal:
    """Raises UserError for lengths that do not fit each other, or for a model that cannot be built."""
    if step.stage not in stages_with("plan"):
        raise UserError(f"{step.stage}: choose from {', '.join(stages_with('plan'))}", option="stage")
    step.workload.check(step.stage)
    with ExitStack() as stack, warnings.catch_warnings():
        if step.on_gpu:
            try:
                stack.enter_context(rehearsal())
            except ValueError as error:  # a kernel does not know whose mistake it is
                raise UserError(f"{error}; --use_cpu plans without it") from error
        warnings.simplefilter("ignore")  # of deprecated names in PEFT and transformers
        return rehearse_policy(step) if stages()[step.stage].plan == "policy" else _rehearse_objective(step)


def _rehearse_objective(step: Step) -> Rehearsal:
    seen = Allocations()
    stage = stages()[step.stage]
    scalar = stage.scalar
    model = fake_model(step, seen, scalar=scalar)
    if step.use_peft:
        model = add_adapters(step, model, seen, scalar=scalar)
    if step.activation_checkpointing:
        model.gradient_checkpointing_enable()
    module = StageModel(model, stage.make_objective(), dropout=stage.dropout).train()
    batch = PackedBatch.from_trees(step.workload.trees(step.stage, model.config.get_text_config().vocab_size))
    seen.mark(module.state_dict(keep_vars=True).values(), PARAMETERS)
    seen.mark(module.buffers(), PARAMETERS)
    seen.mark_gradients(module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)  # the Trainer's default
    for _ in range(2):
        seen.moments.clear()
        with seen:
            # As transformers' Trainer has it.
            with seen.during("forward"), precision(step):
                loss = module(batch).loss_sum / 2
            with seen.during("backward"):
                loss.backward()
            del loss
            with seen.during("optimizer"):
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
        mark_optimizer(seen, optimizer)
        optimizer.zero_grad(set_to_none=True)
    return Rehearsal(seen.moments, (counts(module),), frozen={})
