"""Merge LoRA adapters into the model that they were trained on, and prove that nothing has changed.

python -m keju.merge --model_name_or_path runs/sft_lora --output_dir runs/sft_merged

The merged model must give the logits (or, for reward models and critics, the scores) that the adapters gave on top of
their base, before and after it has been written; otherwise nothing is left behind. Adapters may come from any stage.
Those that were trained with --load_in_4bit are merged into what the 4 bits of their base stand for, in whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from keju.conversion.merging import merge_adapters
from keju.conversion.output_folder import check_output, own_files
from keju.errors import UserError, renamed_options
from keju.models.adapter_folder import holds_adapters
from keju.models.loading import read_tokenizer
from keju.records.locks import only_writer
from keju.training.arguments import BASE_MODEL_HELP, parse_arguments
from keju.training.launch import run_stage


@dataclass
class MergeArguments:
    model_name_or_path: str = field(metadata={"help": "Folder of the adapters; it names the folder of their base."})
    output_dir: str = field(metadata={"help": "Folder of the whole model that is made."})
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the merged weights."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the model in --output_dir."})


@renamed_options(tokenizer_name="model_name_or_path")
def main() -> None:
    (args,) = parse_arguments(MergeArguments, description=__doc__)
    source, output = Path(args.model_name_or_path), Path(args.output_dir)
    if not holds_adapters(str(source)):
        raise UserError(f"{source} holds no adapters (no adapter_config.json)", option="model_name_or_path")
    check_output(output, source, overwrite=args.overwrite_output_dir)
    with only_writer(output, own=own_files):
        merge(args)


def merge(args: MergeArguments) -> None:
    source, output = Path(args.model_name_or_path), Path(args.output_dir)
    check_output(output, source, overwrite=args.overwrite_output_dir)  # again, as the only one that writes there
    merged = merge_adapters(
        str(source),
        output,
        save_tokenizer=lambda folder: read_tokenizer(str(source)).save_pretrained(folder),
        base=args.base_model,
        dtype=args.dtype,
    )
    print(f"{output}: merged; {merged.what} differ by at most {merged.difference:.2g} at a scale of {merged.scale:.2g}")


if __name__ == "__main__":
    run_stage(main)
