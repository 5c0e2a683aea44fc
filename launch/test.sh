#!/usr/bin/env bash
# Style check and tests in .venv: bash launch/test.sh [pytest arguments, paths from the root]
# Leaves out the tests marked slow unless CI=true; needs no network once .venv is there.

# Any other shell gets one line here instead of syntax errors further down.
[ -n "${BASH_VERSION:-}" ] || { echo "error: start this with bash: bash $0" >&2; exit 2; }

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# Processes for pytest-xdist; 0 runs the tests one after the other.
workers=2

selection=(-m "not slow")
if [[ ${CI:-} == true ]]; then
  selection=()
fi

prepare dev
step "ruff check ."
"$venv_python" -m ruff check .
step "pytest"
# Each worker starts with neighbouring tests, which share what is trained for them.
exec "$venv_python" -m pytest -n "$workers" --dist worksteal ${selection[@]+"${selection[@]}"} "$@"
