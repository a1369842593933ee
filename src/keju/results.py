"""What alignment does: SFT, then PPO and DPO, over families and seeds, judged by a model that trained none of them.

python -m keju.results --output_dir runs/results --models llama-tiny glm-tiny

Everything runs on the embedded corpus. A family is pretrained once; each seed then makes its own SFT model, reward
model, judge (on prompts that the reward model has not seen), PPO and DPO policies. Runs that are done are not repeated.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keju.encoding.encoder import Encoder
from keju.encoding.text_encoder import UNLIMITED
from keju.models.loading import load_causal_lm, load_scalar_model, load_tokenizer
from keju.records.reading import read_records
from keju.records.writing import write_json
from keju.report.results import write_results
from keju.rl.diversity import distinct
from keju.rl.rollout import Sampler
from keju.rl.scoring import Reader, Scored, score_rollouts
from keju.training.arguments import parse_arguments
from keju.training.launch import run_stage
from keju.training.pipeline import Pipeline, tokenizer_of
from keju.training.ranges import PositiveInt, Seed
from keju.training.yaml_config import CONFIGS

POLICIES = ("sft", "ppo", "dpo")


@dataclass
class ResultsArguments:
    output_dir: str = field(metadata={"help": "Folder of all runs; results.json, results.md and pictures land there."})
    models: list[str] = field(
        default_factory=lambda: ["llama-tiny", "glm-tiny"], metadata={"help": "Named sizes that end in -tiny."}
    )
    seeds: list[Seed] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "One alignment run each."})
    num_prompts: PositiveInt = field(default=256, metadata={"help": "Held-out prompts that each policy answers."})
    max_new_tokens: PositiveInt = field(default=48, metadata={"help": "An answer is cut off there."})
    token_budget: PositiveInt = field(default=4096, metadata={"help": "Tokens of one packed row: the unit of memory."})
    config_dir: str = field(default=str(CONFIGS), metadata={"help": "Folder of the stages' YAML files."})


@dataclass
class PolicyFigures:
    """Of one policy and seed. Means over held-out prompts, one answer each, sampled at temperature 1."""

    win_rate: float  # against the SFT policy's answer to the same prompt, by the judge; ties count half
    judge: float
    reward: float  # of the reward model that PPO was trained with
    kl: float  # nats a response, to the SFT policy
    length: float
    finished: float
    distinct_2: float
    accuracy: float  # on the idiom benchmark
    seconds: float  # wall time of the stage


def main() -> None:
    (args,) = parse_arguments(ResultsArguments, description=__doc__)
    pipeline = Pipeline(args.output_dir, args.config_dir)
    data = pipeline.run("prepare_data", "data", "--corpus", "idiom")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    folders: dict[str, list[Path]] = {}
    for model in args.models:
        base = pretrain(pipeline, model, data)
        results[model], folders[model] = {name: [] for name in POLICIES}, []
        for seed in args.seeds:
            runs = align(pipeline, model, base, data, seed)
            folders[model].append(runs["ppo"])
            for name, figures in measure(pipeline, model, runs, data, seed, args).items():
                results[model][name].append(asdict(figures))
    stages = [json.loads(path.read_text(encoding="utf-8")) for path in pipeline.root.rglob("summary.json")]
    seconds = sum(stage["seconds"] for stage in stages)
    summary = {"seeds": args.seeds, "results": results, "seconds": round(seconds, 1)}
    write_json(pipeline.root / "results.json", summary)
    page = write_results(summary, folders, pipeline.root)
    print(f"\n{page}")


def pretrain(pipeline: Pipeline, model: str, data: Path) -> Path:
    flags = ["--model_name_or_path", model, "--tokenizer_name", str(tokenizer_of(data, model)), "--data_dir", str(data)]
    return pipeline.run("pretrain", f"{model}/pretrain", *flags)


def align(pipeline: Pipeline, model: str, base: Path, data: Path, seed: int) -> dict[str, Path]:
    """The runs of one seed, by name."""

    def run(stage: str, name: str, start: Path, *flags: str) -> Path:
        where = ["--model_name_or_path", str(start), "--data_dir", str(data), "--seed", str(seed)]
        return pipeline.run(stage, f"{model}/seed-{seed}/{name}", *where, *flags)

    sft = run("train_sft", "sft", base)
    reward, judge = (run("train_reward", f"reward-{fold}", sft, "--fold", f"{fold}/2") for fold in (1, 2))
    watched = ["--reward_model_path", str(reward), "--judge_model_path", str(judge)]
    return {
        "sft": sft,
        "reward": reward,
        "judge": judge,
        "dpo": run("train_dpo", "dpo", sft),
        "ppo": run("train_rlhf", "ppo", sft, *watched),
    }


def measure(
    pipeline: Pipeline, model: str, runs: dict[str, Path], data: Path, seed: int, args: ResultsArguments
) -> dict[str, PolicyFigures]:
    """Each policy answers the same held-out prompts; the judge compares the answers with those of the SFT policy."""
    tokenizer = load_tokenizer(str(runs["sft"]))
    encoder = Encoder(tokenizer, UNLIMITED)
    records = list(read_records(data / "ranked_dev.jsonl"))[: args.num_prompts]
    prompts = [list(encoder.prompt_tree(record).tokens) for record in records]
    sampler = Sampler(tokenizer, num_responses=1, max_new_tokens=args.max_new_tokens)
    reward, judge = (load_scalar_model(str(runs[name]), tokenizer=tokenizer).eval() for name in ("reward", "judge"))
    reference = load_causal_lm(str(runs["sft"]), tokenizer=tokenizer).eval()
    found: dict[str, PolicyFigures] = {}
    baseline: Scored | None = None
    for name in POLICIES:
        actor = load_causal_lm(str(runs[name]), tokenizer=tokenizer).eval()
        scored = score_rollouts(
            sampler.sample(actor, prompts, seed),
            actor=actor,
            reference=reference,
            critic=reward,  # its values are not looked at
            reward=Reader(reward),
            judge=Reader(judge),
            mode="keju",
            pad_id=sampler.pad_id,
            temperature=1.0,
            token_budget=args.token_budget,
        )
        baseline = baseline or scored
        difference = scored.judge_scores - baseline.judge_scores
        wins = (difference > 0).float() + 0.5 * (difference == 0).float()
        benchmark = pipeline.run(
            *("eval_pretrain", f"{model}/seed-{seed}/eval_{name}", "--model_name_or_path", str(runs[name])),
            *("--data_dir", str(data)),
        )
        summary = json.loads((runs[name] / "summary.json").read_text(encoding="utf-8"))
        found[name] = PolicyFigures(
            win_rate=float(wins.mean()),
            judge=float(scored.judge_scores.mean()),
            reward=float(scored.scores.mean()),
            kl=float(scored.kl.mean()),
            length=float(scored.lengths.float().mean()),
            finished=float(scored.finished.float().mean()),
            distinct_2=distinct([rollout.responses[0].ids for rollout in scored.rollouts], 2),
            accuracy=json.loads((benchmark / "results.json").read_text(encoding="utf-8"))["results"][0]["accuracy"],
            seconds=summary["seconds"],
        )
    return found


if __name__ == "__main__":
    run_stage(main)
