# To be sourced: sets PYTHON to an interpreter with the project and its dependencies; makes .venv if there is none.
# `source environment.sh [dev]`: with `dev` also the tests' dependencies. If it fails, it exits with 2 and one line.
# DS_RVQVAE_TORCH=VERSION makes .venv with that torch in place of the pinned one, as for drivers older than CUDA 13.
# Later starts keep it.

# Variables of the user's shell that would change every interpreter below.
unset CDPATH PYTHONHOME PYTHONINSPECT PYTHONSTARTUP

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$project/.venv
shell=$BASHPID # in a subshell $$ is that of the parent
log=$venv/install.log

# Open closed streams: else files that are opened later would get what is printed.
[ -e /dev/fd/0 ] || exec </dev/null
[ -e /dev/fd/1 ] || exec >/dev/null
[ -e /dev/fd/2 ] || exec 2>/dev/null

# A message that cannot be printed, because its reader is gone or the disk is full, must not end the script.
note() { (trap '' PIPE TTOU && echo "environment: $1" >&3) 3>&2 2>/dev/null || true; }

fail() {
  note "$1"
  exit 2
}

# Outside the project's folder, where ds_rvqvae would be found without being installed.
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

# Sets torch to the version that .venv gets: of DS_RVQVAE_TORCH, else the one it was made with; empty for the pinned one.
choose_torch() {
  local least
  torch=${DS_RVQVAE_TORCH:-$(sed -n 3p "$venv/installed" 2>/dev/null || cat "$venv/making" 2>/dev/null || true)}
  [ -n "$torch" ] || return 0
  [[ $torch =~ ^[0-9]+\.[0-9]+[0-9a-z.+]*$ ]] ||
    fail "DS_RVQVAE_TORCH=$torch: write a version of torch, such as 2.10.0"
  least=$(sed -n 's/^ *"torch>=\([0-9.]*\)",$/\1/p' "$project/pyproject.toml")
  [ "$(printf '%s\n' "$least" "$torch" | sort -V | head -n 1)" = "$least" ] ||
    fail "DS_RVQVAE_TORCH=$torch: ds_rvqvae needs torch $least or newer"
  ! grep -qxF "torch==$torch" "$project/constraints.txt" || torch=
}

stamp_of() { # extras
  local files=("$project/pyproject.toml" "$project/setup.py" "$project/constraints.txt")
  printf '%s\n' "$project" "$({ cat "${files[@]}"; echo "$1"; } | cksum)" "$torch"
}

# The environment for the tests is also good for training.
is_ready() { # extras
  local stamp
  choose_torch
  stamp=$(cat "$venv/installed" 2>/dev/null) && "$venv/bin/python" -c '' 2>/dev/null &&
    { [ "$stamp" = "$(stamp_of "$1")" ] || [ "$stamp" = "$(stamp_of dev)" ]; }
}

count_installed() {
  { find "$venv"/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' 2>/dev/null || true; } | wc -l
}

# What pip is doing, in words, from the end of its log.
progress() {
  local line names there
  line=$(grep -aoE '^ *(Collecting|Downloading|Building|Preparing|Installing) .*' "$log" 2>/dev/null | tail -n 1 || true)
  case $line in
    *Installing\ collected\ packages:*)
      read -ra names <<<"${line#*: }"
      there=$(($(count_installed) - before))
      there=$((there < 0 ? 0 : there < ${#names[@]} ? there : ${#names[@]} - 1))
      echo "installing ${names[there]%,} ($((there + 1)) of ${#names[@]})"
      ;;
    *Downloading*) line=${line#*Downloading } && echo "downloading ${line##*/}" ;;
    *Collecting*) line=${line#*Collecting } && echo "looking for ${line%% *}" ;;
    "") echo "making the environment" ;;
    *) echo "preparing the build of ds_rvqvae" ;;
  esac
}

# Prints a line every few seconds, until `unwatch`, or until this shell is gone.
watch_install() {
  local began=$((SECONDS - 4)) parent # the first line comes early: making an environment takes a while
  # The shell's pid alone does not tell: it stays until the shell's parent has read its status.
  while sleep 1 >/dev/null 2>&1 && read -r _ _ _ parent _ <"/proc/$BASHPID/stat" && [ "$parent" = "$shell" ]; do
    [ $((SECONDS - began)) -lt 7 ] || { began=$SECONDS && note "$((SECONDS - start)) s: $(progress)"; }
  done
}

unwatch() {
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
}

make_venv() { # extras
  local target=. constraints=constraints.txt before start=$SECONDS failed= watcher
  [ -z "$1" ] || target=".[$1]"
  find_python
  # An environment that is incomplete, was moved, or has lost its interpreter cannot be repaired in place. With another
  # torch, packages of the former one's CUDA would stay.
  if [ -e "$venv/making" ] || ! "$venv/bin/python" -c '' 2>/dev/null ||
    { [ -e "$venv/installed" ] &&
      [ "$(sed -n '1p;3p' "$venv/installed")" != "$(printf '%s\n' "$project" "$torch")" ]; }; then
    rm -rf "$venv" || fail "$venv cannot be removed to be made again"
  fi
  note "installing into $venv${torch:+ with torch $torch}; this takes a minute, or several if CUDA packages are downloaded"
  rm -f "$venv/installed" "$log"
  mkdir -p "$venv" 2>/dev/null && echo "$torch" >"$venv/making" || fail "$venv cannot be written"
  before=0
  watch_install 9<&- &
  watcher=$!
  # -I: no file of the working folder and no PYTHONPATH replaces a module. The project's own path may have characters
  # with another meaning to pip.
  "$base_python" -I -m venv "$venv" >"$log" 2>&1 || failed=yes
  unwatch
  if [ -n "$torch" ]; then # what torch itself pins to other versions is free
    constraints=.venv/constraints.txt
    { grep -vE '^(torch|sympy|setuptools)==' "$project/constraints.txt" && echo "torch==$torch"; } \
      >"$venv/constraints.txt"
  fi
  before=$(count_installed)
  watch_install 9<&- &
  watcher=$!
  [ -n "$failed" ] ||
    (cd "$project" && "$venv/bin/python" -I -m pip install --progress-bar off --no-input \
      --disable-pip-version-check -c "$constraints" -e "$target") >>"$log" 2>&1 ||
    failed=yes
  unwatch
  if [ -n "$failed" ]; then
    failed=$({ grep '^ERROR' "$log" || grep -v '^WARNING' "$log"; } | grep . | tail -n 1)
    [ -z "$torch" ] || failed+=" (with torch $torch; DS_RVQVAE_TORCH=2.13.0 goes back)"
    fail "installing failed: $failed (full log: $log)"
  fi
  stamp_of "$1" >"$venv/installed"
  rm "$venv/making"
  local activate=.venv/bin/activate
  [ "$PWD" -ef "$project" ] || activate=$(printf %q "$venv/bin/activate")
  note "ready after $((SECONDS - start)) s; for ds-rvqvae in your shell: source $activate"
}

# Sets PYTHON to that of the active environment, if that has all modules.
use_active() { # module…
  local variable folder
  for variable in VIRTUAL_ENV CONDA_PREFIX; do
    folder=${!variable:-}
    [ -n "$folder" ] || continue
    ! [ "$folder" -ef "$venv" ] || return 1
    if has_modules "$folder/bin/python" "$@"; then
      note "using $folder, which is active ($variable)${DS_RVQVAE_TORCH:+; DS_RVQVAE_TORCH concerns .venv only}"
      PYTHON=$folder/bin/python
      return
    fi
  done
  return 1
}

prepare() { # extras
  local modules=(ds_rvqvae torch deepspeed)
  [ -z "$1" ] || modules+=(pytest ruff)
  ! use_active "${modules[@]}" || return 0
  PYTHON=$venv/bin/python
  is_ready "$1" && return
  # Two starts at the same time: the second waits, then finds the work done. The lock is on the folder and leaves no file.
  if command -v flock >/dev/null; then
    local refused before=0 start=$SECONDS watcher
    exec 9<"$project"
    if refused=$(flock -n 9 2>&1); then
      :
    elif [ -n "$refused" ]; then
      note "$project cannot be locked (${refused##*: }); let one start finish its install before the next one"
    else
      note "another start is installing into $venv; waiting for it"
      watch_install 9<&- &
      watcher=$!
      flock 9 || true
      unwatch
    fi
  fi
  if ! is_ready "$1"; then
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    [ -z "$active" ] || [ "$active" = "$venv" ] || [ "$active" -ef "$venv" ] || note "$active, which is active, lacks one of ${modules[*]}"
    make_venv "$1"
  fi
  exec 9<&-
}

prepare "${1:-}"
