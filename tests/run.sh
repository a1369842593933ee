#!/usr/bin/env bash
# Sets the environment up as the examples do, then runs the test suite. Further arguments go to pytest.
#
#   bash tests/run.sh                  everything but the tests marked slow
#   bash tests/run.sh -m slow          those
#   bash tests/run.sh tests/trees -x   a part
source "$(dirname "${BASH_SOURCE[0]}")/../examples/_environment.sh"
needs test

cd "$REPO"
# One thread a worker: two of them on two cores
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
selection=(-m "not slow")
case " $* " in *" -m "*) selection=() ;; esac
exec python -m pytest -q -n "${PYTEST_WORKERS:-2}" --dist worksteal ${selection[@]+"${selection[@]}"} "$@"
