#!/usr/bin/env bash
# Reward model: the K ranked answers of a prompt are one tree, all their ordered pairs are compared.
#
#   MODEL       what it starts from (runs/sft, made by train_sft.sh when it is not there)
#   DATA_DIR    folder of ranked_train.jsonl (the idiom corpus)
#   OUTPUT_DIR  (runs/reward)      CONFIG  a YAML file of settings (examples/configs/train_reward.yaml)
#   NUM_GPUS    processes (1); more go through the deepspeed launcher
# Further flags go to the stage: bash examples/train_reward.sh --loss_type span
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

embedded_data
previous_model MODEL "$REPO/runs/sft" train_sft.sh
run_stage train_reward "${CONFIG:-$REPO/examples/configs/train_reward.yaml}" \
    --model_name_or_path "$MODEL" --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/reward}" "$@"
