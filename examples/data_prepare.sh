#!/usr/bin/env bash
# Raw corpus -> records, a benchmark from held-out items, a small vocabulary.
#
#   CORPUS      a file of data_prepare/corpora/ (idiom)
#   OUTPUT_DIR  (runs/data/$CORPUS)
# Further flags go to the stage: bash examples/data_prepare.sh --max_idioms 5000
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

CORPUS="${CORPUS:-idiom}"
OUTPUT_DIR="${OUTPUT_DIR:-$REPO/runs/data/$CORPUS}"
python -m keju.prepare_data --corpus "$CORPUS" --output_dir "$OUTPUT_DIR" "$@"
