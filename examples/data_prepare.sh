#!/usr/bin/env bash
# Raw corpus -> records in splits that share no text, a report, a small vocabulary.
#
#   CORPUS      a file of data_prepare/corpora/ (idiom)
#   RAW_DIR     folder of its raw data, as downloaded (idiom is a package and needs none)
#   OUTPUT_DIR  (runs/data/$CORPUS)
# Further flags go to the stage: bash examples/data_prepare.sh --max_idioms 5000
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs data

CORPUS="${CORPUS:-idiom}"
OUTPUT_DIR="${OUTPUT_DIR:-$REPO/runs/data/$CORPUS}"
python -m keju.prepare_data --corpus "$CORPUS" ${RAW_DIR:+--raw_dir "$RAW_DIR"} --output_dir "$OUTPUT_DIR" "$@"
