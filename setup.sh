#!/usr/bin/env bash
# Makes .venv and installs the given requirements files into it; quick when nothing changed. Sourced by quickstart.sh and
# run_tests.sh, or run by hand:   bash setup.sh requirements.txt [requirements-dev.txt ...]
set -euo pipefail

# Images set it to stay small. Here every command would compile the same modules anew: twice the time of a trainer's start.
unset PYTHONDONTWRITEBYTECODE

die() {
  echo "error: $*" >&2
  exit 2
}

# The newest Python that the pinned packages have wheels for.
find_python() {
  local name
  for name in python3.11 python3.12 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  die "no Python 3.11 or 3.12 on the PATH; install python3.11 (Debian: apt-get install python3 python3-venv)"
}

make_venv() {
  local python
  python=$(find_python)
  # Debian ships venv apart from Python: without it a .venv without pip is left behind.
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
      echo "installing python3-venv, which Debian ships apart from Python"
      apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    else
      die "this Python has no venv; install it (Debian: apt-get install python3-venv)"
    fi
  fi
  "$python" -m venv .venv
}

# install_requirements FILE...: torch first and by its exact version, then the rest, which then finds torch satisfied. A file
# that is installed as it stands (its checksum is kept in .venv) is not installed again.
install_requirements() {
  local file stale=0
  for file in "$@"; do
    [[ -f .venv/installed/$file && $(<".venv/installed/$file") == $(sha256sum <"$file") ]] || stale=1
  done
  ((stale)) || return 0
  [[ -x .venv/bin/python ]] || make_venv
  local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input)
  local torch files=()
  torch=$(grep -m1 '^torch==' requirements.txt) || die "requirements.txt has no line torch==; put it back"
  for file in "$@"; do files+=(-r "$file"); done
  echo "installing $torch"
  "${pip[@]}" "$torch"
  echo "installing $*"
  "${pip[@]}" "${files[@]}"
  mkdir -p .venv/installed
  for file in "$@"; do sha256sum <"$file" >".venv/installed/$file"; done
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  cd "$(dirname "$0")"
  [[ $# -gt 0 ]] || die "usage: bash setup.sh requirements.txt [FILE ...]"
  install_requirements "$@"
fi
