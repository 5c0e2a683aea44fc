# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: makes or extends .venv in the repository root.

set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
venv_python=.venv/bin/python

step() { printf '== %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Sets `python` to a Python >= 3.11 that can make virtual environments, or ends the script.
find_python() {
  local candidate found=""
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    # A name on PATH does not always run: pyenv leaves stubs of versions that are not selected.
    if [[ -z $candidate ]] || ! "$candidate" -c 'import sys' >/dev/null 2>&1; then
      continue
    fi
    if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found=${found:-"$candidate is older"}
    elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      found="$candidate lacks its venv module (Debian and Ubuntu: apt install python3-venv)"
    else
      python=$candidate
      return
    fi
  done
  fail "no Python >= 3.11 that can make virtual environments:" \
    "${found:-none on PATH}; install one, or set PYTHON to it"
}

check_disk() {
  local free
  free=$("$python" -c 'import shutil; print(shutil.disk_usage(".").free >> 20)')
  if ((free < 2048)); then
    fail "only $free MiB of disk are free at $root and the packages need 2048 MiB; free some"
  fi
}

make_venv() {
  find_python
  check_disk
  step "making .venv with $("$python" -c 'import platform, sys
print(sys.executable, platform.python_version())')"
  # --clear: what is there does not run, so nothing in it can be kept.
  "$python" -m venv --clear .venv >&2 || fail "cannot make $root/.venv; see the lines above"
}

# What an installation depends on; the root is in it because `pip install -e` notes the path.
fingerprint() {
  "$venv_python" - "$root" "${1:-}" <<'PYTHON'
import hashlib
import pathlib
import sys

files = (pathlib.Path(name).read_text() for name in ("requirements.txt", "pyproject.toml"))
parts = [*sys.argv[1:], *files]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

# prepare [EXTRA]: a .venv with requirements.txt, the package (editable) and the extra.
prepare() {
  local extra=${1:-} stamp log=.venv/install.log
  stamp=.venv/installed${extra:+-$extra}
  # A stop while .venv was made leaves a Python without pip.
  "$venv_python" -m pip --version >/dev/null 2>&1 ||
    { "$venv_python" -m ensurepip && "$venv_python" -m pip --version; } >/dev/null 2>&1 ||
    make_venv
  "$venv_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$root/.venv holds a Python older than 3.11; delete that folder and start again"
  if [[ -f $stamp && $(<"$stamp") == "$(fingerprint "$extra")" ]]; then
    step "using .venv as it is"
    return
  fi
  # The stamps go first and come back last: an installation that stops half-way is done again.
  rm -f .venv/installed*
  step "installing requirements.txt and mrl_jax${extra:+ with the extra \"$extra\"} into .venv" \
    "(minutes the first time; log in .venv/install.log)"
  : >"$log"
  if ! "$venv_python" -m pip install -r requirements.txt -e ".${extra:+[$extra]}" >>"$log" 2>&1; then
    # The end of pip's log often says only that something above it failed.
    { grep -E 'ERROR:|Errno' "$log" || cat "$log"; } | tail -n 3 >&2
    if [[ $(<"$log") == *"No space left on device"* ]]; then
      fail "the installation filled the disk of $root or of ${TMPDIR:-/tmp}; free some and start" \
        "the same command again"
    fi
    fail "the installation failed (log: $root/$log): check the network, or your pip index" \
      "settings, and start the same command again"
  fi
  fingerprint >.venv/installed
  fingerprint "$extra" >"$stamp"
}
