#!/usr/bin/env bash
# Makes one checkpoint folder of another, and checks that both models give the same logits: pytorch_model*.bin to
# safetensors, shards merged or split, Baichuan to Llama and the like, more tokens in the vocabulary.
#
#   MODEL       checkpoint folder that is read
#   OUTPUT_DIR  folder for the new one
# Further flags go to the stage:
#   bash examples/convert.sh --to llama                 (qwen2, glm; baichuan, qwen ... for the way back)
#   bash examples/convert.sh --max_shard_size 100GB     (one file)
#   bash examples/convert.sh --add_tokens_file words.txt --new_embeddings pieces
#   bash examples/convert.sh --add_pieces chinese_sp.model --new_embeddings pieces    (as Chinese-LLaMA was made)
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs

[ -n "${MODEL:-}" ] || _fail "MODEL is not set: the checkpoint folder to convert"
[ -n "${OUTPUT_DIR:-}" ] || _fail "OUTPUT_DIR is not set: the folder for the new checkpoint"
python -m keju.convert --model_name_or_path "$MODEL" --output_dir "$OUTPUT_DIR" "$@"
