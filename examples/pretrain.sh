#!/usr/bin/env bash
# Pretrain on text records; packed documents do not see each other.
#
#   MODEL       checkpoint folder, hub name, or a size to start from random weights (llama-tiny; also glm-tiny ...)
#   TOKENIZER   its folder, where it is not the model's own ($DATA_DIR/tokenizer for the embedded corpus)
#   DATA_DIR    folder of pretrain_train.jsonl (the idiom corpus, made when it is not there)
#   OUTPUT_DIR  (runs/pretrain)      CONFIG  a YAML file of settings (examples/configs/pretrain.yaml)
#   NUM_GPUS    processes (1); more go through the deepspeed launcher
# Further flags go to the stage: bash examples/pretrain.sh --learning_rate 1e-4
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

embedded_data
MODEL="${MODEL:-llama-tiny}"
own_tokenizer
run_stage pretrain "${CONFIG:-$REPO/examples/configs/pretrain.yaml}" \
    --model_name_or_path "$MODEL" --tokenizer_name "$TOKENIZER" \
    --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/pretrain}" "$@"
