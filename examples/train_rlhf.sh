#!/usr/bin/env bash
# PPO against a reward model: a prompt and its sampled responses are one tree.
#
#   MODEL         the actor's start and reference (runs/sft, made by train_sft.sh when it is not there)
#   REWARD_MODEL  (runs/reward, made by train_reward.sh when it is not there)
#   DATA_DIR      folder of prompts_train.jsonl (the idiom corpus)
#   OUTPUT_DIR    (runs/rlhf)      CONFIG  a YAML file of settings (examples/configs/train_rlhf.yaml)
#   NUM_GPUS      processes (1); more go through the deepspeed launcher
# Further flags go to the stage: bash examples/train_rlhf.sh --kl_coef 0.05
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

embedded_data
previous_model MODEL "$REPO/runs/sft" train_sft.sh
previous_model REWARD_MODEL "$REPO/runs/reward" train_reward.sh
run_stage train_rlhf "${CONFIG:-$REPO/examples/configs/train_rlhf.yaml}" \
    --model_name_or_path "$MODEL" --reward_model_path "$REWARD_MODEL" \
    --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/rlhf}" "$@"
