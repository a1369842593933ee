"""Which tokens of a response are actions, which of them are trained, and where its score is read.

`--ppo_mode keju` (default) says what one expects: the generated tokens are the actions, the EOS among them; all are
trained; the score is read at the last one and paid there. `--ppo_mode deepspeed_chat` is DeepSpeed-Chat's
`ppo_trainer.py` term by term. It knows the end of a response only by the pad's id, and so differs in this:

1. The reward is paid one action later, at index start + n (n = tokens that are not the pad). Where pad is not EOS,
   that is the choice of the first pad after the EOS: the KL at that pad and the critic's value at the EOS enter the
   advantages, and the reward reaches the EOS only through gamma * lambda. A response as long as its batch has no such
   place: there the reward lands on its last token.
2. Actions that are the pad's id are not trained. Where pad is EOS, ending a response is thus never learned, and the
   score is read at the token before the EOS.
3. Responses of at most one token that is not the pad are dropped.
4. Log-probs are taken at temperature 1, whatever the temperature of sampling.
5. No whitening of advantages, no reward normalisation, no missing-EOS penalty (defaults only: flags turn them on), and
   with a ptx loss both losses are halved (its gradient accumulation doubles).

Equal in both modes: KL (k1) in the reward, scores clipped, gamma, lambda and clip ranges, nothing after the end in GAE
(DeepSpeed-Chat zeroes that tail, too), token-mean losses, AdamW betas. Not taken over: its forced greedy decoding for
Llama, and dropout in the new log-probs (actor and critic run without dropout throughout).
"""

from collections.abc import Callable
from typing import NamedTuple

from keju.errors import UserError
from keju.models.generation import Response


class Actions(NamedTuple):
    tokens: tuple[int, ...]  # every action that has a log-prob, a value and a reward
    trained: tuple[bool, ...]  # those that enter the losses
    score_index: int  # the token of the response at which the reward model is read


def keju_actions(response: Response, width: int, pad_id: int) -> Actions | None:
    return Actions(response.ids, (True,) * len(response.ids), len(response.ids) - 1)


def deepspeed_chat_actions(response: Response, width: int, pad_id: int) -> Actions | None:
    row = response.ids + (pad_id,) * (width - len(response.ids))
    num_real = row.index(pad_id) if pad_id in row else width
    if num_real <= 1:
        return None
    tokens = row[: num_real + 1]
    return Actions(tokens, tuple(index < num_real for index in range(len(tokens))), num_real - 1)


class Mode(NamedTuple):
    """`actions_of(response, width, pad_id)`: None drops the response; `width` is that of the longest in the rollout."""

    actions_of: Callable[[Response, int, int], Actions | None]
    scores_at_temperature: bool  # log-probs at the temperature of sampling, or at 1
    halves_with_ptx: bool
    defaults: dict[str, float | bool]  # of flags that are not given


PPO_MODES = {
    "keju": Mode(
        keju_actions,
        scores_at_temperature=True,
        halves_with_ptx=False,
        defaults={"whiten_advantages": True, "normalize_reward": True, "missing_eos_penalty": 1.0, "ptx_coef": 0.1},
    ),
    "deepspeed_chat": Mode(
        deepspeed_chat_actions,
        scores_at_temperature=False,
        halves_with_ptx=True,
        defaults={"whiten_advantages": False, "normalize_reward": False, "missing_eos_penalty": 0.0, "ptx_coef": 27.8},
    ),
}


def rules_of(name: str) -> Mode:
    if name not in PPO_MODES:
        raise UserError(f"{name}: choose from {', '.join(PPO_MODES)}", option="ppo_mode")
    return PPO_MODES[name]
