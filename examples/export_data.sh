#!/usr/bin/env bash
# Examples in any format that Keju reads -> one file in a format that other toolkits read.
#
#   INPUT_FILES  files or folders, separated by spaces (the ranked answers of the idiom corpus)
#   LAYOUT       records, alpaca, sharegpt, messages, preference, kto, ranked, prompts or text (preference)
#   OUTPUT_FILE  its end says the kind of file: .jsonl, .jsonl.zst, .json, .csv, .parquet (runs/export/$LAYOUT.jsonl)
# Further flags go to the stage: bash examples/export_data.sh --pairs best_worst --conversational
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs data

LAYOUT="${LAYOUT:-preference}"
OUTPUT_FILE="${OUTPUT_FILE:-$REPO/runs/export/$LAYOUT.jsonl}"
if [ -z "${INPUT_FILES:-}" ]; then
    embedded_data
    INPUT_FILES="$DATA_DIR/ranked_train.jsonl"
fi
read -r -a inputs <<<"$INPUT_FILES"
python -m keju.export_data --input_files "${inputs[@]}" --layout "$LAYOUT" --output_file "$OUTPUT_FILE" "$@"
