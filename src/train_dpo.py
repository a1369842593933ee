"""Direct preference optimisation on ranked answers: K answers are one tree, and all their ordered pairs are compared.

The reference is the model as it starts; its log-probabilities are computed once and cached on disk.

python -m keju.train_dpo --model_name_or_path runs/sft --data_dir runs/data/idiom --output_dir runs/dpo
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers.integrations import is_deepspeed_zero3_enabled

from keju.models.loading import load_causal_lm
from keju.training.answer_scores import answer_logprobs
from keju.training.arguments import DataArguments, ModelArguments, StageTrainingArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.objectives.preference import PreferenceObjective
from keju.training.plots import plot_histograms
from keju.training.progress import Progress
from keju.training.reference_cache import add_reference_logprobs, default_cache_dir
from keju.training.stage import add_adapters, inspect, num_pairs, num_shared, open_run, prepare, read_splits, train


@dataclass
class DPODataArguments(DataArguments):
    train_filename: str = field(default="ranked_train.jsonl", metadata={"help": "Ranked records, in --data_dir."})
    eval_filename: str | None = field(default="ranked_dev.jsonl", metadata={"help": "Held-out ranked records."})


@dataclass
class DPOArguments(StageTrainingArguments):
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate."})
    beta: float = field(default=0.1, metadata={"help": "How strongly the policy is held to the reference."})
    loss_type: Literal["sigmoid", "ipo", "hinge"] = field(default="sigmoid", metadata={"help": "The preference loss."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Chance that a preference is wrong (sigmoid loss)."})
    reference_free: bool = field(default=False, metadata={"help": "Compare log-probabilities without a reference."})
    reference_cache_dir: str = field(
        default=str(default_cache_dir()), metadata={"help": "Where reference log-probabilities are kept."}
    )


def main() -> None:
    model_args, data, training = parse_arguments(ModelArguments, DPODataArguments, DPOArguments, description=__doc__)
    if is_deepspeed_zero3_enabled() and not training.reference_free:
        raise ValueError(
            "--deepspeed: DPO under ZeRO-3 needs --reference_free for now; ZeRO 0 to 2 compute the reference"
        )
    folder = open_run("dpo", model_args, data, training)
    tokenizer, encoder = prepare(model_args, data, training)
    model = load_causal_lm(model_args.model_name_or_path, dtype=model_args.dtype, tokenizer=tokenizer)
    records, held_out = read_splits(data, encoder, "ranked")
    inspect(records, tokenizer, model, form="ranked")
    print(f"Trees hold {num_shared(records.trees):.2f} times fewer tokens than rows of prompt + answer would.")
    if not training.reference_free:
        model.to(training.device)
        trees = [*records.trees, *(held_out.trees if held_out else [])]
        with Progress(len(trees), "reference", unit="prompts") as bar:
            computed = add_reference_logprobs(
                model,
                trees,
                token_budget=data.token_budget,
                cache_dir=Path(training.reference_cache_dir),
                write=folder.is_main,
                on_tree=bar.advance,
            )
        print(f"Reference log-probabilities: {computed} computed, {len(trees) - computed} from the cache.")
    model = add_adapters(model, model_args, task_type="CAUSAL_LM")
    objective = PreferenceObjective(
        training.beta, training.loss_type, training.label_smoothing, training.reference_free
    )
    outcome = train(model, objective, tokenizer, records, held_out, data=data, training=training, folder=folder)
    if held_out and folder.is_main:
        outcome.summary["heldout_accuracy"] = outcome.summary.pop("eval_accuracy")
        outcome.summary["heldout_pairs"] = num_pairs(held_out.trees)
        plot_histograms(
            _margins(model, held_out.trees, training, data.token_budget),
            folder.path / "margins.png",
            title="Reward margins of held-out pairs",
            xlabel="beta x (log-ratio of the better answer - log-ratio of the worse)",
        )
    folder.finish(**outcome.summary)


def _margins(model, trees, training: DPOArguments, token_budget: int) -> dict[str, list[float]]:
    margins: list[float] = []
    for tree, logprobs in zip(trees, answer_logprobs(model, trees, token_budget=token_budget), strict=True):
        rewards = [
            (branch.values["score"], training.beta * (logprob - branch.values.get("ref_logprob", 0.0)))
            for branch, logprob in zip(tree.branches, logprobs, strict=True)
        ]
        margins += [better - worse for a, better in rewards for b, worse in rewards if a > b]
    return {"held-out pairs": margins}


if __name__ == "__main__":
    run_stage(main)
