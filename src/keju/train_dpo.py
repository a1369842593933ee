"""Direct preference optimisation on ranked answers: K answers are one tree, and all their ordered pairs are compared.

With --loss_type kto, answers are good or bad by themselves, without pairs. The reference is the model as it starts; its
log-probabilities are computed once and cached on disk.

python -m keju.train_dpo --model_name_or_path runs/sft --data_dir runs/data/idiom --output_dir runs/dpo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from keju.errors import UserError
from keju.losses.preference_mix import loss_names
from keju.losses.preference_pairs import LossSettings
from keju.models.loading import load_causal_lm
from keju.stages.dpo import STAGE
from keju.stages.kto import STAGE as KTO
from keju.training.arguments import (
    DataArguments,
    ModelArguments,
    StageTrainingArguments,
    ThinkingArguments,
    parse_arguments,
)
from keju.training.cache_folder import cache_folder
from keju.training.dropout import DISABLE_DROPOUT_HELP, dropout_of
from keju.training.engines import readable
from keju.training.launch import run_stage
from keju.training.objectives.kto import KTOObjective, MismatchedAnswers
from keju.training.objectives.preference import PreferenceObjective
from keju.training.plots import plot_histograms
from keju.training.progress import Progress
from keju.training.ranges import LabelSmoothing, NonNegativeFloat, PositiveFloat, Share
from keju.training.reference_cache import reference_trees
from keju.training.stage import (
    add_adapters,
    check_best_metric,
    guard,
    inspect,
    load_start,
    num_shared,
    open_run,
    prepare,
    read_records,
    train,
)
from keju.training.stage_model import passes_of
from keju.trees.lazy_trees import lengths_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack_arrays
from keju.trees.segment import Segment


@dataclass
class DPODataArguments(ThinkingArguments, DataArguments):
    train_filename: str = field(default=STAGE.train_file, metadata={"help": "Ranked records, in --data_dir."})
    eval_filename: str | None = field(default=STAGE.eval_file, metadata={"help": "Held-out ranked records."})


@dataclass
class DPOArguments(StageTrainingArguments):
    learning_rate: NonNegativeFloat = field(default=1e-6, metadata={"help": "Peak learning rate."})
    disable_dropout: bool = field(default=True, metadata={"help": DISABLE_DROPOUT_HELP})
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": f"The preference loss, or several: {', '.join(loss_names())}; or kto alone."},
    )
    loss_weights: list[NonNegativeFloat] | None = field(
        default=None, metadata={"help": "Of several losses; 1 each by default."}
    )
    beta: PositiveFloat = field(default=0.1, metadata={"help": "How strongly the policy is held to the reference."})
    label_smoothing: LabelSmoothing = field(
        default=0.0,
        metadata={"help": "Chance that a preference is wrong (sigmoid, robust, exo_pair, aot, cpo, simpo)."},
    )
    reference_free: bool = field(default=False, metadata={"help": "Compare log-probabilities without a reference."})
    ld_alpha: Share | None = field(
        default=None, metadata={"help": "LD-DPO: weight of the tokens by which an answer is longer than the other."}
    )
    simpo_gamma: NonNegativeFloat = field(default=0.5, metadata={"help": "The margin of simpo."})
    cpo_alpha: NonNegativeFloat = field(default=1.0, metadata={"help": "Weight of the language-model term of cpo."})
    discopop_tau: PositiveFloat = field(default=0.05, metadata={"help": "Temperature of the blend of discopop."})
    desirable_weight: NonNegativeFloat = field(default=1.0, metadata={"help": "Weight of good answers in kto."})
    undesirable_weight: NonNegativeFloat = field(default=1.0, metadata={"help": "Weight of bad answers in kto."})
    reference_cache_dir: str = field(
        default=str(cache_folder("reference_logprobs")),
        metadata={"help": "Where reference log-probabilities are kept."},
    )


def main() -> None:
    model_args, data, training = parse_arguments(ModelArguments, DPODataArguments, DPOArguments, description=__doc__)
    objective = make_objective(training)
    is_kto = isinstance(objective, KTOObjective)
    if model_args.use_peft and model_args.init_lora_weights == "loftq" and objective.needs_reference:
        raise UserError("--init_lora_weights loftq starts away from the 4-bit base, which is the reference")
    check_best_metric(training, objective)
    folder = open_run(STAGE.name, model_args, data, training)
    tokenizer, encoder = prepare(folder, model_args, data, training)
    form = (KTO if is_kto else STAGE).form
    records, held_out = read_records(folder, model_args, data, encoder, form)
    model, model_args = load_start(load_causal_lm, folder, model_args, tokenizer, training)
    inspect(records, tokenizer, model, form=form)
    print(f"Trees hold {num_shared(records.trees):.2f} times fewer tokens than rows of prompt + answer would.")
    splits = [split for split in (records, held_out) if split]
    if is_kto:
        splits = [replace(split, trees=MismatchedAnswers(split.trees, data.token_budget)) for split in splits]
    if objective.needs_reference:
        guard(model, training)
        count = sum(map(len, splits))
        with Progress(count, "reference", unit="prompts") as bar, readable(model, training) as passes:
            trees = reference_trees(
                passes,
                [split.trees for split in splits],
                token_budget=data.token_budget,
                cache_dir=Path(training.reference_cache_dir),
                by_token=training.ld_alpha is not None,
                write=folder.is_main,
                on_tree=bar.advance,
            )
        computed = sum(found.num_computed for found in trees)
        print(f"Reference log-probabilities: {computed} computed, {count - computed} from the cache.")
        splits = [replace(split, trees=found) for split, found in zip(splits, trees, strict=True)]
    records, held_out = (*splits, None)[:2]
    model = add_adapters(model, model_args, task_type="CAUSAL_LM")
    outcome = train(
        model,
        objective,
        tokenizer,
        records,
        held_out,
        data=data,
        training=training,
        folder=folder,
        loraplus_lr_ratio=model_args.adapter_lr_ratio,
        dropout=dropout_of(training.disable_dropout, model_args.lora_dropout),
    )
    if held_out:
        found = margins(outcome.trainer.model, objective, held_out.trees, data.token_budget)
        outcome.summary["heldout_pairs"] = len(found)
        if found:
            outcome.summary["heldout_accuracy"] = outcome.summary.pop("eval_accuracy")
        else:
            print("No prompt of the held-out records has a good and a bad answer: no accuracy, and no margins.")
        if found and folder.is_main:
            plot_histograms(
                {"held-out pairs": found},
                folder.path / "margins.png",
                title="Reward margins of held-out pairs",
                xlabel="implicit reward of the better answer - that of the worse",
            )
    folder.finish(**outcome.summary)


def make_objective(training: DPOArguments) -> PreferenceObjective | KTOObjective:
    if "kto" not in training.loss_type:
        settings = LossSettings(
            training.beta,
            training.label_smoothing,
            simpo_gamma=training.simpo_gamma,
            cpo_alpha=training.cpo_alpha,
            discopop_tau=training.discopop_tau,
        )
        return PreferenceObjective(
            settings,
            training.loss_type,
            training.loss_weights,
            reference_free=training.reference_free,
            ld_alpha=training.ld_alpha,
        )
    if len(training.loss_type) > 1:
        raise UserError("--loss_type kto compares no pairs; it cannot be mixed with others")
    for flag in ("reference_free", "label_smoothing", "loss_weights"):
        if getattr(training, flag):
            raise UserError(f"--{flag} has no effect with --loss_type kto")
    if training.ld_alpha is not None:
        raise UserError("--ld_alpha is for pairs, not for --loss_type kto")
    return KTOObjective(training.beta, training.desirable_weight, training.undesirable_weight)


@torch.no_grad()
def margins(
    model: nn.Module, objective: PreferenceObjective | KTOObjective, trees: Sequence[Segment], token_budget: int
) -> list[float]:
    """The implicit reward of the better answer minus that of the worse, of each pair."""
    passes = passes_of(model).eval()
    found: list[float] = []
    for members in pack_arrays(lengths_of(trees), token_budget):
        batch = PackedBatch.from_trees([trees[index] for index in members])
        found += passes(batch, objective.margins).tolist()
    return found


if __name__ == "__main__":
    run_stage(main)
