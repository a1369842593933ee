#!/usr/bin/env bash
# Generates answers to the prompts of a record file; with reference answers also ROUGE, BLEU, distinct-n and length.
#
#   MODEL       what generates (runs/sft, made by train_sft.sh when it is not there)
#   DATA_DIR    folder of ranked_test.jsonl (the idiom corpus)
#   OUTPUT_DIR  (runs/pred_pretrain)      CONFIG  a YAML file of settings (examples/configs/pred_pretrain.yaml)
# Further flags go to the stage: bash examples/pred_pretrain.sh --temperature 0.8 --top_p 0.9
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs eval

embedded_data
previous_model MODEL "$REPO/runs/sft" train_sft.sh
python -m keju.pred_pretrain "${CONFIG:-$REPO/examples/configs/pred_pretrain.yaml}" \
    --model_name_or_path "$MODEL" --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/pred_pretrain}" "$@"
