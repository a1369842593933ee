"""Speed, memory and share of the device's limits of Keju's kernels, beside their peers.

python kernels/bench/run.py
python kernels/bench/run.py --ops rms_norm,glu --output results.json

An op is a file of this folder. Every provider must first agree with plain torch; only then are all of them timed, in
turns. The limits are those that this run measures: bytes a second of a large copy, operations a second of a large
matrix product in the same dtype, whichever of the two a pass is nearer to. Memory is what a pass needs above its
inputs (CUDA only; torch does not count it on the CPU). "forward" runs without gradients. "error" is the greatest
deviation from plain torch in a wider dtype, as a share of what is expected.

Exit codes: 0; 1 where a provider disagrees or fails; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from harness.case import Setting
from harness.clock import Clock, Limits
from harness.measure import attempt, measure
from harness.table import text

from keju.kernels.dispatch import is_interpreted, use_triton

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "triton", "liger-kernel", "transformers", "peft")
ROUNDS = {"full": 50, "small": 10, "tiny": 2}


def main() -> int:
    args = arguments()
    ops = {path.stem: path for path in sorted(args.folder.resolve().glob("*.py")) if path != HERE / "run.py"}
    chosen = args.ops.split(",") if args.ops else list(ops)
    unknown = [name for name in chosen if name not in ops]
    if unknown:
        return complain(f"--ops {','.join(unknown)}: choose from {', '.join(ops)}")
    if is_interpreted():
        return complain("TRITON_INTERPRET=1: interpreted kernels are for tests, their times mean nothing")
    setting = setting_here(args.tiny)
    try:
        head = heading(setting)
    except ValueError as error:  # KEJU_KERNELS asks for what cannot be
        return complain(str(error))
    clock = Clock(setting.device)
    limits = clock.limits(setting.dtype, setting.size)
    head["limits"] = limits._asdict()
    print(heading_text(head), flush=True)
    measured, failed = [], False
    for name in chosen:
        try:
            cases = load(ops[name]).cases(setting)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] in ("keju", "harness"):
                raise
            print(f"{name}: left out ({error.name} is not installed)\n", flush=True)
            continue
        for number, case in enumerate(cases, 1):
            print(f"{name} {number}/{len(cases)}: {case.name}", file=sys.stderr, flush=True)
            rounds = args.rounds or ROUNDS[setting.size]
            report, problem = attempt(measure, name, case, clock, limits, rounds)
            print(text(report) if report else f"{name}: {case.name}: {problem}\n", flush=True)
            failed |= report is None or report.failed
            measured.append({"op": name, "case": case.name, **(report.as_json() if report else {"problem": problem})})
            # After every case: what was measured stays if the run is cut short.
            write(args.output, {**head, "cases": measured})
            # Compiled functions of one case are of no use to the next, and there is a limit to how many dynamo keeps.
            torch.compiler.reset()
    print(f"written to {args.output}")
    return int(failed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default="", help="names with commas between them (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a few seconds: whether everything runs, no figures of use")
    parser.add_argument("--output", type=Path, default=Path("runs/kernel_bench.json"), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, help="turns of each provider (default: 50 on CUDA, 10 on the CPU)")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the op files are")
    args = parser.parse_args()
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds {args.rounds} must be positive")
    return args


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def setting_here(tiny: bool) -> Setting:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return Setting(device, dtype, "tiny" if tiny else "full" if device == "cuda" else "small")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def heading(setting: Setting) -> dict[str, Any]:
    """Where and when, for the terminal and the JSON."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    is_cuda = setting.device == "cuda"
    probe = torch.empty(0, dtype=setting.dtype, device=setting.device)
    return {
        "device": torch.cuda.get_device_name() if is_cuda else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "device_type": setting.device,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "keju_runs": "Triton" if use_triton(probe) else "plain torch",
        "dtype": str(setting.dtype).removeprefix("torch."),
        "size": setting.size,
    }


def heading_text(head: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items() if version)
    limits = Limits(**head["limits"])
    product = f"product {limits.flops / 1e12:.3f} TFLOP/s in {head['dtype']}"
    counted = "" if head["device_type"] == "cuda" else ", counted on CUDA only"
    return (
        f"{head['device']}, {head['date']}; keju runs {head['keju_runs']}; {versions}\n"
        f"limits: copy {limits.bandwidth / 1e9:.1f} GB/s, {product}; MiB: peak above the inputs{counted}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
