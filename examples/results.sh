#!/usr/bin/env bash
# What alignment does: SFT, reward model, PPO and DPO on the embedded corpus, over families and seeds, with win rates under
# a held-out judge. About half an hour on two CPU cores; what is done is not repeated.
#
#   OUTPUT_DIR  (runs/results): results.md, results.png, results.json and all runs
#   bash examples/results.sh --models llama-tiny pangu-tiny --seeds 1 2 3 4
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs data eval

python -m keju.results --output_dir "${OUTPUT_DIR:-$REPO/runs/results}" "$@"
