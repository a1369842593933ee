"""Reward model: K ranked answers as one tree against TRL's RewardTrainer on pairs.

python tests/bench/reward.py
"""

from __future__ import annotations

import torch
from ranked_records import pairs_of_ids, ranked_trees
from side_by_side import arguments, common_settings, compare, ours, tiny_llama, with_attention, word_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments
from trl import RewardConfig, RewardTrainer

from keju.training.objectives.reward import RewardObjective
from keju.training.tree_trainer import TreeTrainer


def main() -> None:
    args = arguments(__doc__, prompts=4, answers=4, prompt_length=128, answer_length=64)
    trees = ranked_trees(args.prompts, args.answers, args.prompt_length, args.answer_length, args.vocab_size)
    pairs = pairs_of_ids(trees)
    tokenizer = word_tokenizer(args.vocab_size)

    def scalar_model():
        causal = tiny_llama(args)
        config = LlamaConfig.from_dict({**causal.config.to_dict(), "num_labels": 1})
        model = LlamaForSequenceClassification(config)
        model.model.load_state_dict(causal.model.state_dict())
        torch.manual_seed(1)
        torch.nn.init.normal_(model.score.weight, std=0.02)
        return model

    def build_ours(folder, steps):
        settings = TrainingArguments(per_device_train_batch_size=len(trees), **common_settings(folder, steps))
        budget = sum(tree.num_tokens for tree in trees)
        return TreeTrainer(ours(scalar_model()), RewardObjective("last"), settings, trees, token_budget=budget)

    def build_peer(folder, steps):
        settings = RewardConfig(
            per_device_train_batch_size=len(pairs),
            gradient_checkpointing=False,
            **common_settings(folder, steps),
        )
        return RewardTrainer(
            with_attention(scalar_model(), "sdpa"), settings, train_dataset=pairs, processing_class=tokenizer
        )

    tokens = sum(tree.num_tokens for tree in trees), sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in pairs)
    print(f"{len(pairs)} pairs a step; tokens: trees {tokens[0]}, pairs {tokens[1]} ({tokens[1] / tokens[0]:.2f}x)")
    compare("reward", build_ours, build_peer, items_per_step=len(pairs), unit="pairs/s", args=args)


if __name__ == "__main__":
    main()
