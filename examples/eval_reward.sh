#!/usr/bin/env bash
# How often a reward model ranks held-out answers right, and how its scores are distributed.
#
#   MODEL       a reward model (runs/reward, made by train_reward.sh when it is not there)
#   DATA_DIR    folder of ranked_test.jsonl (the idiom corpus)
#   OUTPUT_DIR  (runs/eval_reward)
# Further flags go to the stage: bash examples/eval_reward.sh --test_filename my_ranked.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs eval

embedded_data
previous_model MODEL "$REPO/runs/reward" train_reward.sh
python -m keju.eval_reward \
    --model_name_or_path "$MODEL" --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/eval_reward}" "$@"
