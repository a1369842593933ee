"""How good a policy is on prompts that it does not learn from."""

from collections.abc import Sequence

from keju.rl.ppo_trainer import PPOTrainer
from keju.rl.scoring import Scored


def evaluate_policy(
    trainer: PPOTrainer, prompts: Sequence[Sequence[int]], seed: int
) -> tuple[Scored, dict[str, float]]:
    """Samples responses to `prompts` with a seed of its own and scores them; nothing is learned.

    Returns mean reward (raw), KL to the reference (nats a response), length and the share that ended by themselves.
    """
    scored = trainer.score(trainer.sample(prompts, seed))
    judged = {} if scored.judge_scores is None else {"judge": float(scored.judge_scores.mean())}
    return scored, judged | {
        "reward": float(scored.scores.mean()),
        "reward_std": float(scored.scores.std(unbiased=False)),
        "kl": float(scored.kl.mean()),
        "response_length": float(scored.lengths.float().mean()),
        "fraction_finished": float(scored.finished.float().mean()),
    }
