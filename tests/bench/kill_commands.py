"""Commands that make a folder, killed at random moments: the folder is the old one or the new one, and mine stays mine.

python tests/bench/kill_commands.py --command convert --kills 10

A real command (convert, merge, data_prepare) replaces what an earlier one has made, in a folder that holds
files of the user's own as well. It runs through once; then it is killed (SIGKILL, with its workers) so many times: at
any moment, and while it writes, which begins when a name beside or in the folder changes. After each kill the folder
holds, byte for byte, what one of the two commands makes, and the files of the user; afterwards the command goes through
once more, and nothing of the killed ones is left behind. The last line is JSON: {"name", "kills", "kills_in_writing",
"whole"}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kill import started
from killed_runs import make_inputs

from keju.records.writing import write_jsonl

OWN = {"mine.txt": b"years of work", "mine/deep.txt": b"more of it"}


@dataclass(frozen=True)
class Command:
    """Two commands that make the same folder: the second replaces what the first one has made.

    timed: names of files that say when they were written or how long it took.
    """

    first: list[str]
    second: list[str]
    timed: frozenset[str] = frozenset()


def module(name: str, **flags) -> list[str]:
    given = (text for flag, value in flags.items() for text in (f"--{flag}", str(value)))
    return [sys.executable, "-m", f"keju.{name}", *given]


def convert(inputs: Path, output: Path) -> Command:
    flags = {"model_name_or_path": inputs / "large", "output_dir": output, "max_shard_size": "4MB"}
    return Command(
        module("convert", **flags), module("convert", **flags, dtype="bfloat16", overwrite_output_dir="true")
    )


def merge(inputs: Path, output: Path) -> Command:
    flags = {"model_name_or_path": inputs / "adapters", "output_dir": output}
    return Command(module("merge", **flags), module("merge", **flags, dtype="bfloat16", overwrite_output_dir="true"))


def data_prepare(inputs: Path, output: Path) -> Command:
    flags = {"corpus": "records", "output_dir": output, "num_workers": 2, "vocab_size": 0}
    return Command(
        module("prepare_data", **flags, raw_dir=inputs / "raw"),
        module("prepare_data", **flags, raw_dir=inputs / "raw2", overwrite_output_dir="true"),
        frozenset({"report.html"}),
    )


COMMANDS: dict[str, Callable[[Path, Path], Command]] = {
    "convert": convert,
    "merge": merge,
    "data_prepare": data_prepare,
}


def make_models(folder: Path) -> None:
    """A model of several shards, and adapters on it: files that take a while to write."""
    import torch
    from char_tokenizer import build_char_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from keju.training.adapters import add_lora

    tokenizer = build_char_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "large")
    tokenizer.save_pretrained(folder / "large")
    adapted = add_lora(LlamaForCausalLM.from_pretrained(folder / "large"), task_type="CAUSAL_LM", r=8, alpha=16)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(folder / "adapters")
    tokenizer.save_pretrained(folder / "adapters")


def make_records(folder: Path, seed: int, rows: int = 4_000) -> None:
    draw = random.Random(seed)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]

    def text(length: int) -> str:
        return "".join(draw.choices(characters, k=length))

    write_jsonl(folder / "a.jsonl", ({"instruction": text(20), "output": text(60)} for _ in range(rows)))


def contents(folder: Path, timed: frozenset[str]) -> dict[str, bytes]:
    """Every file but those in `timed` and hidden ones, which are of a command under way."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = ((path.relative_to(folder), path) for path in files)
    return {
        str(name): path.read_bytes()
        for name, path in named
        if path.name not in timed and not any(part.startswith(".") for part in name.parts)
    }


def names(home: Path, output: Path) -> set[str]:
    """What lies beside and in the output folder; a change tells that the command has begun to write."""
    found = {entry.name for entry in os.scandir(home)}
    return found | ({f"in/{entry.name}" for entry in os.scandir(output)} if output.is_dir() else set())


def begun(home: Path, output: Path, before: set[str]) -> bool:
    try:
        return names(home, output) != before
    except FileNotFoundError:
        return True


def put_own(output: Path) -> None:
    for name, content in OWN.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(content)


def strike(argv: list[str], home: Path, output: Path, log: Path, delay: float, *, writing: bool) -> bool:
    """Kills the command `delay` seconds after its start, or after it begins to write; False where it was faster."""
    before = names(home, output)
    with started(argv, log) as process:
        while writing and process.poll() is None and not begun(home, output, before):
            time.sleep(0.0005)
        until = time.perf_counter() + delay
        while process.poll() is None and time.perf_counter() < until:
            time.sleep(0.0005)
        return process.poll() is None


def go_through(argv: list[str], home: Path, output: Path, log: Path) -> tuple[float, float]:
    """Seconds up to the first thing written, and from then to the end."""
    before, start, wrote = names(home, output), time.perf_counter(), None
    with started(argv, log) as process:
        while process.poll() is None:
            if wrote is None and begun(home, output, before):
                wrote = time.perf_counter()
            time.sleep(0.0005)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    end = time.perf_counter()
    return (wrote or end) - start, end - (wrote or end)


def survive(
    command: Command, home: Path, output: Path, log: Path, kills: int, seed: int, say=print
) -> tuple[int, bool]:
    """How many kills came while it wrote, and whether the folder was whole after each and at the end."""
    draw = random.Random(seed)
    go_through(command.first, home, output, log)
    first = contents(output, command.timed)
    aside = home.with_name("first")
    shutil.copytree(output, aside, symlinks=True)
    put_own(output)
    before, writing_takes = go_through(command.second, home, output, log)
    second = contents(output, command.timed)
    whole = all(second.get(name) == content for name, content in OWN.items())
    say(f"unbroken: {before:.1f} s until it writes, {writing_takes:.1f} s from then on")
    states = [first | OWN, second]
    in_writing = done = 0
    while done < kills:
        shutil.rmtree(output)
        shutil.copytree(aside, output, symlinks=True)
        put_own(output)
        writing = done % 3 != 0
        delay = draw.uniform(0, 0.95 * (writing_takes if writing else before + writing_takes))
        hit = strike(command.second, home, output, log, delay, writing=writing)
        if not hit:
            continue
        done += 1
        left = contents(output, command.timed)
        state = next((name for name, known in zip(("old", "new"), states, strict=True) if left == known), "BROKEN")
        in_writing += writing
        whole &= state != "BROKEN"
        say(f"kill {done}, {delay:.2f} s after it {'began to write' if writing else 'was started'}: {state}")
        if state == "BROKEN":
            for name, known in zip(("old", "new"), states, strict=True):
                say(f"  not {name}: {sorted(file for file in left | known if left.get(file) != known.get(file))[:9]}")
            shutil.copytree(home, home.with_name(f"broken-{done}"), symlinks=True)
    go_through(command.second, home, output, log)
    hidden = [entry.name for entry in home.iterdir() if entry.name != output.name]
    hidden += [str(path.relative_to(output)) for path in output.rglob(".*")]
    say(f"left behind: {hidden or 'nothing'}")
    return in_writing, whole and contents(output, command.timed) == second and not hidden


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", choices=sorted(COMMANDS), default="convert")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    inputs, home = folder / "inputs", folder / "home"
    for path in (inputs, home):
        path.mkdir()
    if args.command in ("convert", "merge"):
        make_models(inputs)
    else:
        make_inputs(inputs)
        for seed, name in enumerate(("raw", "raw2")):
            make_records(inputs / name, seed)
    command = COMMANDS[args.command](inputs, home / "made")
    in_writing, whole = survive(
        command, home, home / "made", folder / "log", args.kills, args.seed, say=lambda line: print(line, flush=True)
    )
    print(f"{time.perf_counter() - start:.0f} s")
    if whole:
        shutil.rmtree(folder)
    else:
        print(f"the folders are kept in {folder}")
    report = {"name": f"kill {args.command}", "kills": args.kills, "kills_in_writing": in_writing, "whole": whole}
    print(json.dumps(report))
    sys.exit(not whole)


if __name__ == "__main__":
    main()
