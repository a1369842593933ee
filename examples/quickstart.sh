#!/usr/bin/env bash
# Every stage on the embedded corpus, on a CPU: environment, data, pretraining, SFT, reward model, DPO, PPO, evaluation.
# Ends with the path of the report. A second run reuses what is there.
#
#   OUTPUT_DIR  (runs/quickstart)      MODEL  llama-tiny, pangu-tiny, glm-tiny, chatglm-tiny ...
#   bash examples/quickstart.sh --fast              a smaller size, for tests
#   bash examples/quickstart.sh --model glm-tiny    the same as MODEL=glm-tiny
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs data eval

python -m keju.quickstart --model "${MODEL:-llama-tiny}" \
    --output_dir "${OUTPUT_DIR:-$REPO/runs/quickstart}" "$@"
