#!/usr/bin/env bash
# Direct preference optimisation on ranked answers; reference log-probabilities are computed once and cached.
#
#   MODEL       the policy's start and reference (runs/sft, made by train_sft.sh when it is not there)
#   DATA_DIR    folder of ranked_train.jsonl (the idiom corpus)
#   OUTPUT_DIR  (runs/dpo)      CONFIG  a YAML file of settings (examples/configs/train_dpo.yaml)
#   NUM_GPUS    processes (1); more go through the deepspeed launcher
# Further flags go to the stage: bash examples/train_dpo.sh --loss_type ipo --beta 0.3
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

embedded_data
previous_model MODEL "$REPO/runs/sft" train_sft.sh
run_stage train_dpo "${CONFIG:-$REPO/examples/configs/train_dpo.yaml}" \
    --model_name_or_path "$MODEL" --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/dpo}" "$@"
