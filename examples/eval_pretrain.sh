#!/usr/bin/env bash
# Benchmarks of a causal language model, zero- and few-shot, against chance.
#
#   MODEL       what to evaluate (runs/pretrain, made by pretrain.sh when it is not there)
#   DATA_DIR    folder of the benchmark files (the idiom corpus)
#   OUTPUT_DIR  (runs/eval_pretrain)      CONFIG  a YAML file of settings (examples/configs/eval_pretrain.yaml)
# Further flags go to the stage: bash examples/eval_pretrain.sh --num_shots 0 5 --overwrite_output_dir
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

embedded_data
previous_model MODEL "$REPO/runs/pretrain" pretrain.sh
python -m keju.eval_pretrain "${CONFIG:-$REPO/examples/configs/eval_pretrain.yaml}" \
    --model_name_or_path "$MODEL" --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/eval_pretrain}" "$@"
