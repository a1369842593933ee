"""DPO: K ranked answers as one tree against TRL's DPOTrainer on pairs, reference log-probabilities cached by both.

python tests/bench/dpo.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ranked_records import pairs_of_text, ranked_trees
from side_by_side import arguments, common_settings, compare, ours, tiny_llama, with_attention, word_tokenizer
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from keju.losses.preference_pairs import LossSettings
from keju.training.objectives.preference import PreferenceObjective
from keju.training.reference_cache import reference_trees
from keju.training.tree_trainer import TreeTrainer


def main() -> None:
    args = arguments(__doc__, prompts=4, answers=4, prompt_length=128, answer_length=64, beta_percent=10)
    beta = args.beta_percent / 100
    trees = ranked_trees(args.prompts, args.answers, args.prompt_length, args.answer_length, args.vocab_size)
    pairs = pairs_of_text(trees)
    tokenizer = word_tokenizer(args.vocab_size)
    budget = sum(tree.num_tokens for tree in trees)

    with tempfile.TemporaryDirectory() as cache:
        (trees,) = reference_trees(ours(tiny_llama(args)), [trees], token_budget=budget, cache_dir=Path(cache))

    def build_ours(folder, steps):
        settings = TrainingArguments(per_device_train_batch_size=len(trees), **common_settings(folder, steps))
        return TreeTrainer(
            ours(tiny_llama(args)), PreferenceObjective(LossSettings(beta)), settings, trees, token_budget=budget
        )

    def build_peer(folder, steps):
        settings = DPOConfig(
            per_device_train_batch_size=len(pairs),
            gradient_checkpointing=False,
            beta=beta,
            precompute_ref_log_probs=True,
            max_length=None,
            **common_settings(folder, steps),
        )
        model = with_attention(tiny_llama(args), "sdpa")
        return DPOTrainer(model, args=settings, train_dataset=pairs, processing_class=tokenizer)

    compare("dpo", build_ours, build_peer, items_per_step=len(pairs), unit="pairs/s", args=args)


if __name__ == "__main__":
    main()
