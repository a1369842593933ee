"""Merge LoRA adapters into the model that they were trained on, and prove that nothing has changed.

python -m keju.merge --model_name_or_path runs/sft_lora --output_dir runs/sft_merged

The merged model must give the logits (or, for reward models and critics, the scores) that the adapters gave on top of
their base, before and after it has been written; otherwise nothing is left behind. Adapters may come from any stage.
Those that were trained with --load_in_4bit are merged into what the 4 bits of their base stand for, in whole numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from keju.conversion.output_folder import check_output, own_files
from keju.conversion.verification import largest_difference, sample_logits
from keju.models.backbone import backbone_of, num_embeddings, unwrapped
from keju.models.configurations import base_of
from keju.models.loading import DTYPES, load_causal_lm, load_scalar_model, read_tokenizer
from keju.models.quantization import nf4, trained_in_4bit
from keju.models.saved_weights import NotAsSaved, verify_saved
from keju.records.locks import only_writer
from keju.records.writing import whole_folder, write_json
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


def main() -> None:
    (args,) = parse_arguments(MergeArguments, description=__doc__.splitlines()[0])
    source, output = Path(args.model_name_or_path), Path(args.output_dir)
    settings = source / "adapter_config.json"
    if not settings.is_file():
        raise ValueError(f"--model_name_or_path: {source} holds no adapters (no adapter_config.json)")
    check_output(output, source, overwrite=args.overwrite_output_dir)
    with only_writer(output, flag="--output_dir", own=own_files):
        merge(args, settings)


def merge(args: MergeArguments, settings: Path) -> None:
    """settings: the adapters' adapter_config.json."""
    source, output = Path(args.model_name_or_path), Path(args.output_dir)
    check_output(output, source, overwrite=args.overwrite_output_dir)  # again, as the only one that writes there
    described = json.loads(settings.read_text(encoding="utf-8"))
    base = base_of(str(source), base=args.base_model)
    is_scalar = described.get("task_type") == "SEQ_CLS"
    load = load_scalar_model if is_scalar else load_causal_lm
    quantization = nf4(torch.float32, flag=f"--model_name_or_path: {source}") if trained_in_4bit(source) else None

    model = load(base, quantization=quantization)
    adapted = PeftModel.from_pretrained(model, source).eval()
    num_tokens = num_embeddings(adapted)
    before = token_outputs(adapted, num_tokens, is_scalar)
    if quantization is not None:
        # What was trained stands on what the 4 bits mean, not on the weights that they were made from.
        whole = load(base, quantization=quantization).dequantize(torch.float32)
        adapted = PeftModel.from_pretrained(whole, source).eval()
    merged = adapted.merge_and_unload(safe_merge=True)
    largest_difference(before, token_outputs(merged, num_tokens, is_scalar))
    with whole_folder(output, own=own_files) as folder:
        merged.to(DTYPES[args.dtype]).save_pretrained(folder)
        try:
            verify_saved(merged, folder)
        except NotAsSaved as error:
            raise ValueError(f"--output_dir: {error}") from error
        read_tokenizer(str(source), flag="--model_name_or_path").save_pretrained(folder)
        again = load(str(folder), **({"require_head": True} if is_scalar else {}))
        after = token_outputs(again, num_tokens, is_scalar)
        # Half precision rounds weights that were merged exactly: the difference is told, and no reason to stop.
        exact = args.dtype == "float32"
        difference = largest_difference(before, after) if exact else float((before - after).abs().max())
        scale = float(before.abs().max())
        figures = {"adapters": str(source), "base": base, "largest_difference": difference, "scale": scale}
        write_json(folder / "merge.json", figures)
    what = "scores" if is_scalar else "logits"
    print(f"{output}: merged; {what} differ by at most {difference:.2g} at a scale of {scale:.2g}")


@torch.inference_mode()
def token_outputs(model: PreTrainedModel, num_tokens: int, is_scalar: bool) -> torch.Tensor:
    """Logits, or the scores of a scalar model, at every token of a few random rows."""
    if not is_scalar:
        return sample_logits(model, num_tokens)

    def scores(**inputs):
        hidden = backbone_of(model)(**inputs, use_cache=False)
        return unwrapped(model).score(hidden.last_hidden_state)

    return sample_logits(model, num_tokens, scores)


if __name__ == "__main__":
    run_stage(main)
