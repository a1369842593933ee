# shellcheck shell=bash
# Sourced by every script here: finds the repository, makes or enters the Python environment. `needs` installs into it.
# --help shows the variables of the script and the flags of its stage, and does nothing else.
#
#   PYTHON=python3.12    interpreter for a new environment (default: python3.12 or python3.11)
#   KEJU_VENV=DIR        the environment's folder (default: .venv in the repository; an active one is used as it is)
#   KEJU_EXTRAS=eval,rl  optional dependencies (extras of pyproject.toml) to install as well as those of the script

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_fail() {
    echo "error: $*" >&2
    exit 2
}

_find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    _fail "Python 3.11 or 3.12 is needed${PYTHON:+ (PYTHON=$PYTHON is not one of them)}"
}

_enter_environment() {
    if [ -z "${KEJU_VENV:-}" ] && [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        return # the user's own environment
    fi
    local folder="${KEJU_VENV:-$REPO/.venv}"
    if [ ! -x "$folder/bin/python" ]; then
        local python
        python="$(_find_python)" || exit 2
        echo "Making the environment $folder ($("$python" --version))"
        "$python" -m venv "$folder" || _fail "$python cannot make an environment (Debian: apt install python3-venv)"
    fi
    # shellcheck disable=SC1091
    source "$folder/bin/activate"
}

# Nothing has to be installed for it.
_help() {
    local name python
    name="$(basename "$0" .sh)"
    python="$(_find_python)" || exit 2
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    echo
    PYTHONPATH="$REPO/src" exec "$python" -m keju "${name/data_prepare/prepare}" --help
}

# needs EXTRA...: installs keju with these extras and those of KEJU_EXTRAS, once for each state of pyproject.toml and
# constraints.txt; a stamp inside the environment says what is there.
needs() {
    local prefix stamp state extra missing=""
    prefix="$(python -c 'import sys; print(sys.prefix)')"
    stamp="$prefix/.keju-installed"
    state="$REPO $(cat "$REPO/pyproject.toml" "$REPO/constraints.txt" | cksum)"
    for extra in "$@" ${KEJU_EXTRAS//,/ }; do
        local covered=(-e "$state $extra" -e "$state dev") # which has all others in it
        case "$extra" in docs | dev) ;; *) covered+=(-e "$state test") ;; esac
        grep -qxF "${covered[@]}" "$stamp" 2>/dev/null || missing+="${missing:+,}$extra"
    done
    if [ -z "$missing" ] && grep -qF "$state" "$stamp" 2>/dev/null; then
        return
    fi
    echo "Installing the pinned dependencies (the first time takes a minute or more)"
    local pip=(python -m pip install --quiet --disable-pip-version-check --constraint "$REPO/constraints.txt")
    # torch first and alone; deepspeed is built against it, so neither may be built in isolation
    "${pip[@]}" torch setuptools wheel ninja || _fail "installing torch failed (see above)"
    "${pip[@]}" --no-build-isolation --editable "$REPO${missing:+[$missing]}" || _fail "installation failed (see above)"
    for extra in "" ${missing//,/ }; do
        echo "$state $extra" >>"$stamp"
    done
}

# run_stage NAME ARGS...: python -m keju.NAME, on NUM_GPUS processes through the deepspeed launcher when there are several
# (CPU processes where there is no GPU), or where DEEPSPEED_CONFIG or HOSTFILE asks for it. It takes the place of the shell,
# so that signals reach it.
run_stage() {
    local name="$1"
    shift
    local processes="${NUM_GPUS:-1}"
    case "$processes" in '' | *[!0-9]*) _fail "NUM_GPUS=$processes is not a number" ;; esac
    [ "$processes" -ge 1 ] || _fail "NUM_GPUS=$processes: must be at least 1"
    if [ "$processes" -eq 1 ] && [ -z "${DEEPSPEED_CONFIG:-}${HOSTFILE:-}" ]; then
        needs
        exec python -m "keju.$name" "$@"
    fi
    needs cluster
    local launcher=(python "$REPO/src/keju/training/process_launcher.py" deepspeed --log_level error --master_port "${MASTER_PORT:-29500}")
    [ -n "${HOSTFILE:-}" ] && launcher+=(--hostfile "$HOSTFILE")
    [ -n "${HOSTFILE:-}" ] && [ -z "${NUM_GPUS:-}" ] || launcher+=(--num_gpus "$processes")
    local gpus
    gpus="$(python -c 'import torch; print(torch.cuda.device_count())')" || exit
    if [ "$gpus" -gt 0 ] && [ -z "${HOSTFILE:-}" ] && [ "$processes" -gt "$gpus" ]; then
        _fail "NUM_GPUS=$processes: this machine has $gpus"
    fi
    if [ "$gpus" -eq 0 ]; then
        export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
        set -- "$@" --use_cpu
    fi
    local flags=("$@")
    case " $* " in *" --deepspeed "*) ;; *) flags+=(--deepspeed "${DEEPSPEED_CONFIG:-$REPO/examples/configs/deepspeed/zero2.json}") ;; esac
    exec "${launcher[@]}" --module "keju.$name" "${flags[@]}"
}

# Data for the stages on the embedded corpus, made when it is not there yet.
embedded_data() {
    DATA_DIR="${DATA_DIR:-$REPO/runs/data/idiom}"
    if [ ! -e "$DATA_DIR" ]; then
        needs data
        python -m keju.prepare_data --corpus idiom --output_dir "$DATA_DIR"
    fi
}

# TOKENIZER for a model that starts from a named size: the one that was made for it, where the data has such a one.
own_tokenizer() {
    if [ -z "${TOKENIZER:-}" ]; then
        TOKENIZER="$DATA_DIR/tokenizer"
        [ ! -d "$TOKENIZER-$MODEL" ] || TOKENIZER="$TOKENIZER-$MODEL"
    fi
}

# previous_model VARIABLE FOLDER SCRIPT: the model of an earlier stage, made by its script when it is not there yet.
previous_model() {
    local variable="$1" folder="$2" script="$3"
    if [ -n "${!variable:-}" ]; then
        return
    fi
    if [ ! -e "$folder/config.json" ]; then
        echo "$variable is not set and $folder is not there yet: running examples/$script first"
        env -u OUTPUT_DIR -u MODEL -u CONFIG -u DEEPSPEED_CONFIG -u HOSTFILE NUM_GPUS=1 DATA_DIR="$DATA_DIR" bash "$REPO/examples/$script" || {
            local status=$?
            [ "$status" -gt 128 ] || echo "examples/$script failed (see above); $variable=FOLDER starts from a model that is there" >&2
            exit "$status"
        }
    fi
    printf -v "$variable" '%s' "$folder"
}

set -euo pipefail
KEJU_EXTRAS="${KEJU_EXTRAS:-}"
for _argument in "$@"; do
    case "$_argument" in -h | --help) _help ;; esac
done
_enter_environment
