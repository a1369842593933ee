#!/usr/bin/env bash
# Shows one example as a stage will learn it (token, id, trained or not, position, branch, role) and refuses what is
# surely wrong, without training.
#
#   MODEL     checkpoint folder, hub name or built-in size (llama-tiny)      TOKENIZER  where it is not the model's own
#   DATA_DIR  folder of the records (the idiom corpus)                       STAGE      pretrain, sft, reward, dpo, kto, rlhf, grpo
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs

embedded_data
MODEL="${MODEL:-llama-tiny}"
case "$MODEL" in *-tiny) [ -e "$MODEL" ] || own_tokenizer ;; esac
python -m keju.doctor --model_name_or_path "$MODEL" ${TOKENIZER:+--tokenizer_name "$TOKENIZER"} \
    --data_dir "$DATA_DIR" --stage "${STAGE:-sft}" "$@"
