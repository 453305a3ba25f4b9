# Sourced: sets PYTHON to an interpreter that has the project and its dependencies, making .venv where there is none.
# `source environment.sh [dev]`: with `dev` the tests' dependencies as well. Exits 2 with one line where it cannot.

# What a shell has left over would change what every interpreter below does.
unset CDPATH PYTHONHOME PYTHONINSPECT PYTHONSTARTUP

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$project/.venv

# Streams that are closed, as files opened later would be printed to.
[ -e /dev/fd/0 ] || exec </dev/null
[ -e /dev/fd/1 ] || exec >/dev/null
[ -e /dev/fd/2 ] || exec 2>/dev/null

# What cannot be printed, as its reader is gone or the disk is full, ends nothing.
note() { (trap '' PIPE TTOU && echo "environment: $1" >&3) 3>&2 2>/dev/null || true; }

fail() {
  note "$1"
  exit 2
}

# Away from the project's folder, whose ds_rvqvae would be found without being installed.
has_modules() { # interpreter, module…
  (cd / && "$1" -c 'import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))' "${@:2}") \
    2>/dev/null
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 python3.10; do
    if supported "$candidate"; then
      "$candidate" -I -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$candidate cannot make virtual environments; install its venv module (Debian: apt install python3-venv)"
      base_python=$candidate
      return
    fi
  done
  fail "needs Python 3.10, 3.11 or 3.12; python3 here is $(python3 --version 2>&1 | tail -n 1)"
}

stamp_of() { # extras
  printf '%s\n' "$project" "$({ cat "$project/pyproject.toml" "$project/setup.py" "$project/constraints.txt"; echo "$1"; } | cksum)"
}

# The environment for the tests serves training too.
is_ready() { # extras
  local stamp
  stamp=$(cat "$venv/installed" 2>/dev/null) && "$venv/bin/python" -c '' 2>/dev/null &&
    { [ "$stamp" = "$(stamp_of "$1")" ] || [ "$stamp" = "$(stamp_of dev)" ]; }
}

make_venv() { # extras
  local log=$venv/install.log began=$SECONDS target=.
  [ -z "$1" ] || target=".[$1]"
  find_python
  # Cut short, moved to another folder or without its interpreter, it cannot be mended in place.
  if [ -e "$venv/making" ] || ! "$venv/bin/python" -c '' 2>/dev/null ||
    { [ -e "$venv/installed" ] && [ "$(head -n 1 "$venv/installed")" != "$project" ]; }; then
    rm -rf "$venv" || fail "$venv cannot be removed to be made anew"
  fi
  note "installing into $venv; this takes a minute, or several where CUDA packages are downloaded"
  rm -f "$venv/installed"
  mkdir -p "$venv" 2>/dev/null && : >"$venv/making" || fail "$venv cannot be written"
  # -I: no file of the working folder, and no PYTHONPATH, takes the place of a module. The project's own path may have
  # characters that pip reads otherwise.
  "$base_python" -I -m venv "$venv" >"$log" 2>&1 &&
    (cd "$project" && "$venv/bin/python" -I -m pip install --quiet --no-input --disable-pip-version-check \
      -c constraints.txt -e "$target") >>"$log" 2>&1 ||
    fail "installing failed: $(grep -v '^WARNING' "$log" | tail -n 1) (all of it: $log)"
  stamp_of "$1" >"$venv/installed"
  rm "$venv/making"
  note "ready after $((SECONDS - began)) s"
}

prepare() { # extras
  local modules=(ds_rvqvae torch deepspeed)
  [ -z "$1" ] || modules+=(pytest ruff)
  if [ -n "${VIRTUAL_ENV:-}" ] && ! [ "$VIRTUAL_ENV" -ef "$venv" ] && has_modules "$VIRTUAL_ENV/bin/python" "${modules[@]}"; then
    PYTHON=$VIRTUAL_ENV/bin/python
    return
  fi
  PYTHON=$venv/bin/python
  is_ready "$1" && return
  # Two starts at once: the second waits, then finds the work done. The lock is on the folder, so it leaves nothing.
  if command -v flock >/dev/null; then
    local refused
    exec 9<"$project"
    refused=$(flock 9 2>&1) ||
      note "$project cannot be locked (${refused##*: }); let one start end its install before the next"
  fi
  is_ready "$1" || make_venv "$1"
  exec 9<&-
}

prepare "${1:-}"
