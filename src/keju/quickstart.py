"""Every stage on the embedded corpus, one after the other, and one report about all of them.

python -m keju.quickstart --output_dir runs/quickstart [--fast]
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

from keju.records.writing import write_json
from keju.report.report import write_report
from keju.stages.spec import stages
from keju.training.arguments import parse_arguments
from keju.training.launch import run_stage
from keju.training.pipeline import Pipeline, tokenizer_of
from keju.training.yaml_config import CONFIGS


@dataclass
class QuickstartArguments:
    output_dir: str = field(metadata={"help": "Folder of all runs; summary.json and report.html land there."})
    model: str = field(
        default="llama-tiny", metadata={"help": "A named size that ends in -tiny: llama-tiny, glm-tiny ..."}
    )
    fast: bool = field(default=False, metadata={"help": "Minutes instead of a quarter of an hour; for tests."})
    config_dir: str = field(default=str(CONFIGS), metadata={"help": "Folder of the stages' YAML files."})


def main() -> None:
    (args,) = parse_arguments(QuickstartArguments, description=__doc__)
    start = time.monotonic()
    used = [stage for stage in stages().values() if stage.fast]
    extra = {stage.script: [*stage.quickstart, *(stage.fast if args.fast else ())] for stage in used}
    pipeline = Pipeline(args.output_dir, args.config_dir, extra)
    data = pipeline.run("prepare_data", "data", "--corpus", "idiom")
    tokenizer, files = str(tokenizer_of(data, args.model)), ["--data_dir", str(data)]

    def evaluate(name: str, model: str | Path, *flags: str) -> None:
        evaluations[name] = pipeline.run(
            "eval_pretrain", f"eval_{name}", "--model_name_or_path", str(model), *files, *flags
        )

    evaluations: dict[str, Path] = {}
    runs: dict[str, Path] = {}
    evaluate("untrained", args.model, "--tokenizer_name", tokenizer)
    runs["pretrain"] = pipeline.run(
        "pretrain", "pretrain", "--model_name_or_path", args.model, "--tokenizer_name", tokenizer, *files
    )
    evaluate("pretrain", runs["pretrain"])
    runs["sft"] = pipeline.run("train_sft", "sft", "--model_name_or_path", str(runs["pretrain"]), *files)
    evaluate("sft", runs["sft"])
    runs["reward"] = pipeline.run("train_reward", "reward", "--model_name_or_path", str(runs["sft"]), *files)
    judged = pipeline.run("eval_reward", "eval_reward", "--model_name_or_path", str(runs["reward"]), *files)
    runs["dpo"] = pipeline.run("train_dpo", "dpo", "--model_name_or_path", str(runs["sft"]), *files)
    evaluate("dpo", runs["dpo"])
    policy = ["--model_name_or_path", str(runs["sft"]), "--reward_model_path", str(runs["reward"])]
    runs["ppo"] = pipeline.run("train_rlhf", "ppo", *policy, *files)
    evaluate("ppo", runs["ppo"])
    answers = pipeline.run("pred_pretrain", "pred", "--model_name_or_path", str(runs["ppo"]), *files)

    summary = collect(args.model, data, runs, evaluations, judged, answers)
    summary["seconds"] = round(time.monotonic() - start, 1)
    summary["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    write_json(pipeline.root / "summary.json", summary)
    report = write_report(summary, runs, pipeline.root / "report.html")
    print_headline(summary)
    print(f"\n{pipeline.root / 'summary.json'}\n{report}")


def collect(
    model: str, data: Path, runs: dict[str, Path], evaluations: dict[str, Path], judged: Path, answers: Path
) -> dict:
    """The figures of all stages, as their own summaries have them."""
    summary: dict = {"model": model, "data": read(data / "report.json").get("rows", {})}
    for name, folder in runs.items():
        summary[name] = read(folder / "summary.json")
    reward = read(judged / "results.json")
    summary["reward"] |= {
        "heldout_accuracy": reward["accuracy"],
        "heldout_interval": reward["interval"],
        "heldout_pairs": reward["num_pairs"],
        "heldout_best_first": reward["best_first"],
    }
    summary["predictions"] = read(answers / "results.json")
    summary["eval"] = {}
    for name, folder in evaluations.items():
        rows = read(folder / "results.json")["results"]
        main = rows[0]  # the first protocol, zero-shot
        summary["eval"]["chance"] = main["chance"]
        summary["eval"][name] = {
            **{key: main[key] for key in ("accuracy", "interval", "num_items", "task", "protocol", "num_shots")},
            "few_shot": {
                str(row["num_shots"]): row["accuracy"] for row in rows[1:] if row["protocol"] == main["protocol"]
            },
            "protocols": {f"{row['protocol']} {row['num_shots']}-shot": row["accuracy"] for row in rows},
        }
    return summary


def print_headline(summary: dict) -> None:
    reward, dpo, ppo, benchmark = (summary[key] for key in ("reward", "dpo", "ppo", "eval"))
    print("\nquickstart finished in {:.0f} s".format(summary["seconds"]))
    print(f"reward model  {reward['heldout_accuracy']:.1%} of held-out pairs ranked right (chance 50%)")
    print(f"DPO           {dpo['heldout_accuracy']:.1%} of held-out pairs ranked right (chance 50%)")
    print(f"PPO           reward {ppo['reward_before']:.3f} -> {ppo['reward_after']:.3f} at KL {ppo['kl']:.2f}")
    results = ", ".join(f"{name} {row['accuracy']:.1%}" for name, row in benchmark.items() if name != "chance")
    print(f"benchmark     {results} (chance {benchmark['chance']:.0%})")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_stage(main)
