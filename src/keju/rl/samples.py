"""samples.jsonl: what the policy wrote at each step, and what it got for it."""

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from keju.rl.experience import Experience
from keju.rl.scoring import Scored


def sample_rows(scored: Scored, tokenizer: PreTrainedTokenizerBase, step: int) -> Iterator[dict]:
    """One row a response. `score`: the reward model's; `reward`: paid at the end; `kl`: a response's, in nats."""
    kl = scored.kl.tolist()
    rewards = scored.terminal_rewards.tolist() if isinstance(scored, Experience) else scored.scores.tolist()
    row = 0
    for rollout in scored.rollouts:
        for response in rollout.responses:
            yield {
                "step": step,
                "prompt": tokenizer.decode(rollout.prompt, skip_special_tokens=True),
                # The end is shown by `finished`; other special tokens that were generated stay visible.
                "response": tokenizer.decode(response.ids[: len(response.ids) - response.finished]),
                "score": round(float(scored.scores[row]), 4),
                "reward": round(rewards[row], 4),
                "kl": round(kl[row], 4),
                "length": len(response.ids),
                "finished": response.finished,
            }
            row += 1


def print_samples(scored: Scored, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """A few responses with their scores, the first of different prompts, a line each."""
    seen = set()
    for row in sample_rows(scored, tokenizer, step=0):
        if len(seen) < count and row["prompt"] not in seen:
            seen.add(row["prompt"])
            end = "" if row["finished"] else " ... (cut off)"
            print(f"  [{row['score']:+.3f}] {row['prompt']!r} -> {row['response'] + end!r}")
