#!/usr/bin/env bash
# From a fresh clone to a report with plots: bash launch/quickstart.sh
# Needs Python >= 3.11 (PYTHON=... chooses one), a network the first time, 2 GiB of disk.
# Call it again to continue where it stopped.

# Any other shell gets one line here instead of syntax errors further down.
[ -n "${BASH_VERSION:-}" ] || { echo "error: start this with bash: bash $0" >&2; exit 2; }

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

(($# == 0)) || { printf 'error: quickstart.sh takes no arguments, got: %s\n' "$*" >&2; exit 2; }

prepare ""
step "training every run of configs/digits.py into runs/quickstart"
"$venv_python" -m mrl_jax.sweep --config configs/digits.py --root runs/quickstart
step "writing the report"
"$venv_python" -m mrl_jax.report runs/quickstart
step "done; open $root/runs/quickstart/report.html"
