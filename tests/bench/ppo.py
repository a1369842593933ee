"""A step of PPO: a prompt and its responses as one token tree, against a plain loop over padded rows (plain_ppo.py).

python tests/bench/ppo.py

Both sides hold the same four Llamas with a vocabulary of 40,000 tokens (that of PanGu, the smallest of the Chinese
models that are supported) and take the same step in `--ppo_mode deepspeed_chat`: responses are sampled, all four models
score them, and actor and critic take an optimizer step on each minibatch. First everything that comes out must be the
same, in float32. Then both are timed in turns from equal weights, with other prompts in each round; the plain loop
generates with transformers, and its sampling is made to find the tokens that ours has found. The last line is JSON:
`ours`, `peer` and `ratio` are responses a second through experience and update; `ratio_whole_step` is with generation.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from plain_ppo import PlainExperience, PlainPPO
from side_by_side import arguments, ours, tiny_llama, with_attention, word_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from keju.rl.experience import Experience, RewardShaping
from keju.rl.ppo_trainer import PPOTrainer
from keju.rl.rewards import FixedKLController
from keju.rl.rollout import Rollout, Sampler

EOS, PAD = 2, 3
PARTS = ("generation", "experience", "update")
RATES = {"actor_learning_rate": 1e-5, "critic_learning_rate": 5e-6}
TOLERANCE = 1e-4  # of numbers, relative to the largest of their kind
WEIGHT_TOLERANCE = 1e-2  # of a step of Adam, which makes as much of tiny gradients as of large ones

Chunks = list[list[int]]


def build_models(args: argparse.Namespace) -> dict[str, torch.nn.Module]:
    """The actor ends a response after `mean_length` tokens on average; the reference is near it, not equal to it."""

    def language_model(seed: int) -> LlamaForCausalLM:
        tied = tiny_llama(args)
        model = LlamaForCausalLM(LlamaConfig.from_dict({**tied.config.to_dict(), "tie_word_embeddings": False}))
        model.model.load_state_dict(tied.model.state_dict())
        head = torch.nn.Linear(args.hidden_size, args.vocab_size)
        head.weight.data.copy_(tied.lm_head.weight)
        head.bias.data.zero_()
        # Logits of random weights are nearly equal: this makes the end as likely as said, and the pad impossible.
        head.bias.data[EOS] = torch.tensor(args.vocab_size / args.mean_length).log()
        head.bias.data[PAD] = -20.0
        model.set_output_embeddings(head)
        torch.manual_seed(seed)
        for parameter in model.parameters() if seed else ():
            parameter.data += 0.1 * parameter.std() * torch.randn_like(parameter)
        return model.eval()

    def scalar_model(seed: int) -> LlamaForSequenceClassification:
        causal = language_model(seed)
        model = LlamaForSequenceClassification(LlamaConfig.from_dict({**causal.config.to_dict(), "num_labels": 1}))
        model.model.load_state_dict(causal.model.state_dict())
        torch.nn.init.normal_(model.score.weight, std=0.1)
        return model.eval()

    return {
        "actor": language_model(0),
        "reference": language_model(1),
        "critic": scalar_model(2),
        "reward_model": scalar_model(3),
    }


class Ours:
    """The phases of PPOTrainer.train_step, one by one."""

    def __init__(self, models: dict[str, torch.nn.Module], prompts: Sequence[Sequence[int]], args: argparse.Namespace):
        tokenizer = word_tokenizer(args.vocab_size)
        self.trainer = PPOTrainer(
            **{name: ours(copy.deepcopy(model)) for name, model in models.items()},
            sampler=Sampler(tokenizer, args.responses, args.max_new_tokens, batch_size=len(prompts) * args.responses),
            shaping=RewardShaping(FixedKLController(0.1), whiten_advantages=False),
            prompts=prompts,
            max_steps=1,
            rollout_batch_size=len(prompts),
            token_budget=args.token_budget,
            ppo_mode="deepspeed_chat",
            num_mini_batches=args.mini_batches,
            lr_scheduler_type="constant",
            **RATES,
        )

    def generation(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Rollout]:
        return self.trainer.sample(prompts, seed)

    def experience(self, rollouts: Sequence[Rollout]) -> Experience:
        return self.trainer.shaping.experience(self.trainer.score(rollouts))

    def update(self, experience: Experience, chunks: Chunks) -> list[tuple[float, float]]:
        found = [self.trainer.update(experience, [experience.trees[index] for index in chunk]) for chunk in chunks]
        return [(metrics["policy_loss"], metrics["value_loss"]) for metrics in found]


class Peer:
    def __init__(self, models: dict[str, torch.nn.Module], args: argparse.Namespace):
        models = {name: with_attention(copy.deepcopy(model), "sdpa") for name, model in models.items()}
        rows = args.prompts * args.responses // args.mini_batches
        self.loop = PlainPPO(**models, pad_id=PAD, batch_size=rows, **RATES)

    def update(self, experience: PlainExperience, chunks: Chunks) -> list[tuple[float, float]]:
        return [self.loop.update(experience, experience.rows.of(chunk)) for chunk in chunks]


def draw_prompts(args: argparse.Namespace, seed: int) -> list[list[int]]:
    """Lengths are spread evenly between the two; longest first, as transformers would not sort them."""
    rng = random.Random(seed)
    lengths = sorted(
        (rng.randint(args.shortest_prompt, args.longest_prompt) for _ in range(args.prompts)), reverse=True
    )
    return [[1, *(rng.randrange(4, args.vocab_size) for _ in range(length - 1))] for length in lengths]


def minibatches(args: argparse.Namespace, seed: int) -> Chunks:
    order = torch.randperm(args.prompts, generator=torch.Generator().manual_seed(seed))
    return [chunk.tolist() for chunk in order.tensor_split(args.mini_batches)]


# -- the same numbers --------------------------------------------------------------------------------------------------


def check(models: dict[str, torch.nn.Module], args: argparse.Namespace) -> None:
    """One step of both; AssertionError names what differs."""
    prompts, chunks = draw_prompts(args, 0), minibatches(args, 0)
    own, peer = Ours(models, prompts, args), Peer(models, args)
    rollouts = own.generation(prompts, 0)
    mine = own.experience(rollouts)
    theirs = peer.loop.experience(peer.loop.generate(rollouts, args.max_new_tokens))
    assert len(mine.trees) == args.prompts, "a prompt whose responses were all dropped, or --token_budget is too small"
    print("The same numbers? Largest difference, and what it is a difference of:")
    expect("scores", mine.scores, theirs.scores)
    actions = slice(theirs.rows.start, theirs.rows.start + mine.mask.shape[1])
    for name in ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"):
        expect(name, getattr(mine, name)[mine.mask], getattr(theirs, name)[:, actions][mine.mask])

    metrics = own.trainer.backward(mine, [mine.trees[index] for index in chunks[0]])
    losses = peer.loop.backward(theirs, theirs.rows.of(chunks[0]))
    expect("policy and value loss", torch.tensor([metrics["policy_loss"], metrics["value_loss"]]), torch.tensor(losses))
    for name in ("actor", "critic"):
        pair = [getattr(side, name) for side in (own.trainer, peer.loop)]
        expect(f"gradients of the {name}", *(flat([p.grad for p in model.parameters()]) for model in pair))
        for model in pair:
            model.zero_grad()

    losses = own.update(mine, chunks), peer.update(theirs, chunks)
    expect("losses of all minibatches", *map(torch.tensor, losses))
    for name in ("actor", "critic"):
        start, mine, theirs = (
            flat(model.parameters()) for model in (models[name], getattr(own.trainer, name), getattr(peer.loop, name))
        )
        apart = float((mine - theirs).norm() / (theirs - start).norm())
        print(f"  {f'weights of the {name}':28} {apart:.1e} of the way that they went in {len(chunks)} optimizer steps")
        assert apart < WEIGHT_TOLERANCE, f"weights of the {name} differ"


def flat(tensors) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def expect(name: str, mine: Tensor, theirs: Tensor) -> None:
    difference, largest = float((mine - theirs).abs().max()), float(theirs.abs().max())
    print(f"  {name:28} {difference:.1e} of {largest:.3g}")
    assert difference <= TOLERANCE * largest, f"{name} differ"


# -- speed -------------------------------------------------------------------------------------------------------------


def timed(seconds: dict[str, list[float]], part: str, work: Callable, *parameters):
    start = time.perf_counter()
    result = work(*parameters)
    seconds[part].append(time.perf_counter() - start)
    return result


def compare(models: dict[str, torch.nn.Module], args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    seconds = {side: {part: [] for part in PARTS} for side in ("ours", "peer")}
    for number in range(1, args.rounds + 1):
        prompts, chunks = draw_prompts(args, number), minibatches(args, number)
        own, peer = Ours(models, prompts, args), Peer(models, args)
        rollouts = timed(seconds["ours"], "generation", own.generation, prompts, number)
        rows = timed(seconds["peer"], "generation", peer.loop.generate, rollouts, args.max_new_tokens)
        work = {"ours": (own.experience, rollouts, own.update), "peer": (peer.loop.experience, rows, peer.update)}
        for side in ("ours", "peer") if number % 2 else ("peer", "ours"):
            score, responses, update = work[side]
            experience = timed(seconds[side], "experience", score, responses)
            timed(seconds[side], "update", update, experience, chunks)
        trees = sum(tree.num_tokens for tree in own.experience(rollouts).trees)
        lengths = [len(response.ids) for rollout in rollouts for response in rollout.responses]
        print(
            f"round {number}: {len(lengths)} responses of {min(lengths)} to {max(lengths)} tokens "
            f"({sum(lengths)} in all); tokens computed: trees {trees}, rows {rows.seq.numel()}; "
            f"experience and update {latest(seconds['ours']):.2f} s and {latest(seconds['peer']):.2f} s",
            flush=True,
        )
    return seconds


def latest(seconds: dict[str, list[float]]) -> float:
    return seconds["experience"][-1] + seconds["update"][-1]


def summarise(seconds: dict[str, dict[str, list[float]]], num_responses: int) -> None:
    """Medians over rounds; a ratio is the median of the rounds' own ratios."""
    print(f"\n{'':22}{'ours':>9}{'plain':>9}{'ours':>13}{'plain':>13}")
    print(f"{'a step':22}{'s':>9}{'s':>9}{'responses/s':>13}{'responses/s':>13}{'ratio':>8}")
    table = {part: [part] for part in PARTS} | {"experience + update": PARTS[1:], "whole step": PARTS}
    found = {}
    for name, parts in table.items():
        rounds = {side: [sum(both) for both in zip(*(own[part] for part in parts), strict=True)]
                  for side, own in seconds.items()}  # fmt: skip
        medians = {side: statistics.median(numbers) for side, numbers in rounds.items()}
        ratio = statistics.median(b / a for a, b in zip(rounds["ours"], rounds["peer"], strict=True))
        speed = {side: num_responses / median for side, median in medians.items()}
        print(f"{name:22}{medians['ours']:9.2f}{medians['peer']:9.2f}"
              f"{speed['ours']:13.2f}{speed['peer']:13.2f}{ratio:8.2f}")  # fmt: skip
        found[name] = speed["ours"], speed["peer"], ratio
    own, peer, ratio = (round(number, 3) for number in found["experience + update"])
    report = {"name": "ppo", "ours": own, "peer": peer, "ratio": round(ratio, 2), "unit": "responses/s"}
    print(json.dumps(report | {"ratio_whole_step": round(found["whole step"][2], 2)}))


def main() -> None:
    args = arguments(
        __doc__,
        **{"hidden_size": 256, "layers": 4, "vocab_size": 40000, "rounds": 5, "token_budget": 4096},
        **{"prompts": 8, "responses": 4, "mini_batches": 4, "shortest_prompt": 64, "longest_prompt": 512},
        **{"max_new_tokens": 128, "mean_length": 64},
    )
    models = build_models(args)
    check(models, args)
    summarise(compare(models, args), args.prompts * args.responses)


if __name__ == "__main__":
    main()
