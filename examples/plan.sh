#!/usr/bin/env bash
# Plans a run before it is launched: bytes on each device, whether they fit, and the command to type.
#
#   MODEL       checkpoint folder, hub name or built-in size (llama-7B)   STAGE     pretrain, sft, reward, dpo, rlhf (sft)
#   GPU_MEMORY  GiB of one GPU (80)                                        NUM_GPUS  (8)
#   OUTPUT_DIR  for plan.json and plan.png (runs/plan)
# Further flags go to the plan: bash examples/plan.sh --token_budget 8192 --use_peft
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs

python -m keju.plan --model_name_or_path "${MODEL:-llama-7B}" --stage "${STAGE:-sft}" --gpu_memory "${GPU_MEMORY:-80}" \
    --num_gpus "${NUM_GPUS:-8}" --output_dir "${OUTPUT_DIR:-$REPO/runs/plan}" "$@"
