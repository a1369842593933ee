#!/usr/bin/env bash
# Evaluations of several models in one table: bash examples/eval_report.sh runs/eval_a runs/eval_b
#
#   OUTPUT_DIR  where report.html and report.md go (runs/eval_report)
# Without folders: the evaluations of the quickstart.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs eval

if [ $# -eq 0 ]; then
    set -- "$REPO"/runs/quickstart/eval_{untrained,pretrain,sft,dpo,ppo}
    [ -d "$1" ] || _fail "no folder is given, and there is no $REPO/runs/quickstart to show"
fi
python -m keju.eval_report --output_dir "${OUTPUT_DIR:-$REPO/runs/eval_report}" --runs "$@"
