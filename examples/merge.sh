#!/usr/bin/env bash
# Merges LoRA adapters into the model that they were trained on, and checks that the outputs are the same.
#
#   MODEL       folder of the adapters (of any stage); --base_model FOLDER where their base is not where they say
#   OUTPUT_DIR  folder of the whole model (MODEL with _merged behind its name)
# Further flags go to the stage: MODEL=runs/sft bash examples/merge.sh --dtype bfloat16
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs

[ -n "${MODEL:-}" ] || _fail "MODEL is not set: the folder of the adapters to merge"
python -m keju.merge --model_name_or_path "$MODEL" --output_dir "${OUTPUT_DIR:-${MODEL%/}_merged}" "$@"
