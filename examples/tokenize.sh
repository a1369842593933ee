#!/usr/bin/env bash
# Tokenises records with all cores; the stage then reads the tokens from disk. A second call says that they are there.
#
#   STAGE       what they are for: pretrain, sft, reward, dpo, kto, rlhf, grpo (sft)
#   MODEL       checkpoint folder or hub name whose tokenizer is taken (llama-tiny)
#   TOKENIZER   its folder, where it is not the model's own ($DATA_DIR/tokenizer for the embedded corpus)
#   DATA_DIR    folder of the records (the idiom corpus, made when it is not there)
#   CONFIG      the YAML file of the stage, whose settings of records count here too (its file in examples/configs)
# Further flags: bash examples/tokenize.sh --num_workers 32 --max_length 2048 --token_cache_dir /data/tokens
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs data

embedded_data
MODEL="${MODEL:-llama-tiny}"
STAGE="${STAGE:-sft}"
case "$MODEL" in *-tiny) [ -e "$MODEL" ] || own_tokenizer ;; esac
script="$(python -c 'import sys; from keju.cli import find; print(getattr(find(sys.argv[1]), "script", ""))' "$STAGE")"
python -m keju.tokenize_data "${CONFIG:-$REPO/examples/configs/${script:-pretrain}.yaml}" --stage "$STAGE" \
    --model_name_or_path "$MODEL" ${TOKENIZER:+--tokenizer_name "$TOKENIZER"} --data_dir "$DATA_DIR" "$@"
