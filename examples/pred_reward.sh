#!/usr/bin/env bash
# Rewards of answers, one JSON line a record; all answers of a prompt are scored as one tree.
#
#   MODEL       a reward model (runs/reward, made by train_reward.sh when it is not there)
#   DATA_DIR    folder of ranked_test.jsonl (the idiom corpus)
#   OUTPUT_DIR  (runs/pred_reward)
# Further flags go to the stage: bash examples/pred_reward.sh --test_filename answers.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs eval

embedded_data
previous_model MODEL "$REPO/runs/reward" train_reward.sh
python -m keju.pred_reward \
    --model_name_or_path "$MODEL" --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/pred_reward}" "$@"
