#!/usr/bin/env bash
# GRPO against a reward model, the modern alternative to PPO: no critic, answers to a prompt are compared with each other.
#
#   MODEL         the policy's start (runs/sft, made by train_sft.sh when it is not there)
#   REWARD_MODEL  (runs/reward, made by train_reward.sh when it is not there)
#   DATA_DIR      folder of prompts_train.jsonl (the idiom corpus)
#   OUTPUT_DIR    (runs/grpo)      CONFIG  a YAML file of settings (examples/configs/train_grpo.yaml)
# Further flags go to the stage: bash examples/train_grpo.sh --kl_coef 0.01
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs rl

case "${NUM_GPUS:-1}" in 0 | 1) ;; *) _fail "NUM_GPUS=$NUM_GPUS: GRPO runs in one process for now" ;; esac
[ -z "${HOSTFILE:-}" ] || _fail "HOSTFILE=$HOSTFILE: GRPO runs in one process for now"
embedded_data
previous_model MODEL "$REPO/runs/sft" train_sft.sh
previous_model REWARD_MODEL "$REPO/runs/reward" train_reward.sh
python -m keju.train_grpo "${CONFIG:-$REPO/examples/configs/train_grpo.yaml}" \
    --model_name_or_path "$MODEL" --reward_model_path "$REWARD_MODEL" \
    --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/grpo}" "$@"
