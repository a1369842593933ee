#!/usr/bin/env bash
# What every change must pass beside the tests: style, types, shells, the manual as a site.
#
#   bash tests/gates.sh
source "$(dirname "${BASH_SOURCE[0]}")/../examples/_environment.sh"
needs dev

cd "$REPO"
ruff check .
ruff format --check .
shellcheck examples/*.sh tests/*.sh .ci/run
python tests/check_types.py
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
