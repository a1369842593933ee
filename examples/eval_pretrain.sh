#!/usr/bin/env bash
# Benchmarks of a causal language model, zero- and few-shot, against chance.
#
#   MODEL       what to evaluate (runs/pretrain, made by pretrain.sh when it is not there)
#   DATA_DIR    folder of the benchmark files, or of the folders ceval, mmlu, cmmlu, clue (the idiom corpus)
#   OUTPUT_DIR  (runs/eval_pretrain)
#   CONFIG      a YAML file of settings (examples/configs/eval_pretrain.yaml; with --tasks: eval_benchmarks.yaml there)
# Further flags go to the stage: bash examples/eval_pretrain.sh --tasks ceval,mmlu,clue --num_shots 0 5
# A run that was interrupted goes on when the same command is given again.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
needs eval

config="$REPO/examples/configs/eval_pretrain.yaml"
case " $* " in *" --tasks "*) config="$REPO/examples/configs/eval_benchmarks.yaml" ;; esac
embedded_data
previous_model MODEL "$REPO/runs/pretrain" pretrain.sh
python -m keju.eval_pretrain "${CONFIG:-$config}" \
    --model_name_or_path "$MODEL" --data_dir "$DATA_DIR" --output_dir "${OUTPUT_DIR:-$REPO/runs/eval_pretrain}" "$@"
