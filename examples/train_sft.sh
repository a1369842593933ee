#!/usr/bin/env bash
# Supervised fine-tuning on the best answer of ranked records, on chats, or on instructions.
#
#   MODEL       what to fine-tune (runs/pretrain, made by pretrain.sh when it is not there); llama-tiny: random weights
#   TOKENIZER   its folder, where it is not the model's own ($DATA_DIR/tokenizer for random weights)
#   DATA_DIR    folder of the records (the idiom corpus)
#   OUTPUT_DIR  (runs/sft)      CONFIG  a YAML file of settings (examples/configs/train_sft.yaml)
#   NUM_GPUS    processes (1); more go through the deepspeed launcher
# Further flags go to the stage: bash examples/train_sft.sh --learning_rate 1e-5
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

embedded_data
previous_model MODEL "$REPO/runs/pretrain" pretrain.sh
case "$MODEL" in *-tiny) [ -e "$MODEL" ] || own_tokenizer ;; esac
run_stage train_sft "${CONFIG:-$REPO/examples/configs/train_sft.yaml}" \
    --model_name_or_path "$MODEL" ${TOKENIZER:+--tokenizer_name "$TOKENIZER"} \
    --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/sft}" "$@"
