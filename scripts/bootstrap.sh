# Makes .venv with edgeqwen in it, or does nothing when it is there already. Sourced by scripts/run and
# scripts/test, which say with what extra: `prepare ""` or `prepare dev`.
#
# EDGEQWEN_PYTHON       the Python to use
# EDGEQWEN_WHEEL_INDEX  a package index with ready-made wheels of llama-cpp-python; nothing is compiled then
# CMAKE_ARGS            more of how to build llama.cpp, such as -DGGML_CUDA=ON; it is built anew when it changes,
#                       and as before where it is not set

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

say() {
  printf '%s\n' "$1" >&2
}

# Prints EDGEQWEN_PYTHON, or the first Python that is new enough and can make virtual environments.
find_python() {
  local candidate version too_old="" without_venv=""
  local candidates=(python3.14 python3.13 python3.12 python3.11 python3 python)
  if [ -n "${EDGEQWEN_PYTHON:-}" ]; then
    candidates=("$EDGEQWEN_PYTHON")
    command -v "$EDGEQWEN_PYTHON" >/dev/null 2>&1 ||
      fail "EDGEQWEN_PYTHON names $EDGEQWEN_PYTHON, which cannot be run"
  fi
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    version=$("$candidate" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null) || continue
    if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      too_old=$version
    elif "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      command -v "$candidate"
      return
    else
      without_venv=${without_venv:-$version}
    fi
  done
  [ -n "$without_venv" ] && fail "Python $without_venv has no venv module; install it: $(how_to_install venv "$without_venv")"
  [ -n "$too_old" ] && fail "Python $too_old is too old; install Python 3.11 or newer, or name one with EDGEQWEN_PYTHON"
  fail "no Python was found; install Python 3.11 or newer: $(how_to_install python)"
}

# Prints the command that installs a compiler, Python, or the venv module of a version of it on this system.
how_to_install() {
  local what=$1 version=${2:-} system=""
  if [ "$(uname -s 2>/dev/null)" = Darwin ]; then
    [ "$what" = compiler ] && echo "xcode-select --install" || echo "brew install python@3.12"
    return
  fi
  [ -r "${EDGEQWEN_OS_RELEASE:-/etc/os-release}" ] &&
    system=$(. "${EDGEQWEN_OS_RELEASE:-/etc/os-release}" && echo "${ID:-} ${ID_LIKE:-}")
  case "$what $system" in
    compiler*fedora* | compiler*rhel*) echo "sudo dnf install gcc-c++ python3-devel" ;;
    compiler*suse*) echo "sudo zypper install gcc-c++ python3-devel" ;;
    compiler*arch*) echo "sudo pacman -S --needed gcc" ;;
    compiler*alpine*) echo "sudo apk add g++ linux-headers python3-dev" ;;
    compiler*) echo "sudo apt install g++ python3-dev" ;;
    *fedora* | *rhel*) echo "sudo dnf install python3.12" ;;
    *suse*) echo "sudo zypper install python312" ;;
    *arch*) echo "sudo pacman -S --needed python" ;;
    *alpine*) echo "sudo apk add python3" ;;
    venv*) echo "sudo apt install python${version%.*}-venv" ;;
    *) echo "sudo apt install python3-venv" ;;
  esac
}

# llama.cpp of the pinned release is in .venv already.
has_llama() {
  .venv/bin/python -m pip freeze 2>/dev/null | grep -qx "$(grep '^llama_cpp_python==' scripts/constraints.txt)"
}

# ... or its plain build in pip's cache.
has_kept_wheel() {
  local pinned
  pinned=$(grep '^llama_cpp_python==' scripts/constraints.txt)
  .venv/bin/python -m pip cache list llama_cpp_python 2>/dev/null | grep -q "llama_cpp_python-${pinned#*==}-"
}

# llama.cpp is built from source unless it is there as it is wanted, pip has kept the wheel of an earlier build,
# or an index has one.
check_build() {
  local another=$1 compiler found="" free_kb memory_kb
  [ -n "${EDGEQWEN_WHEEL_INDEX:-}" ] && return
  [ -z "$another" ] && has_llama && return
  [ -z "$CMAKE_ARGS" ] && has_kept_wheel && return
  if [ "$(uname -s)" = Darwin ] && ! xcode-select -p >/dev/null 2>&1; then
    fail "no C++ compiler was found; install one: $(how_to_install compiler)"
  fi
  for compiler in ${CXX:-} c++ g++ clang++; do
    command -v "$compiler" >/dev/null 2>&1 && found=$compiler && break
  done
  [ -n "$found" ] || fail "no C++ compiler was found; install one: $(how_to_install compiler)
or name an index with ready-made wheels of llama-cpp-python in EDGEQWEN_WHEEL_INDEX"
  free_kb=$(df -Pk . 2>/dev/null | awk 'NR == 2 {print $4}') || free_kb=""
  if [ -n "$free_kb" ] && [ "$free_kb" -lt 1500000 ]; then
    fail "$((free_kb / 1000)) MB are free here, and building llama.cpp takes 1,500 MB; free some, or use another disk"
  fi
  memory_kb=$(available_kb)
  if [ "$memory_kb" -lt 1000000 ]; then
    say "warning: $((memory_kb / 1000)) MB of memory and swap are available; the compiler takes up to 1,000 MB and may be"
    say "         killed. More swap helps (Raspberry Pi OS: scripts/install-pi.sh sees to it), or EDGEQWEN_WHEEL_INDEX"
  fi
}

# Memory that can be had, and free swap; or what a container has left.
available_kb() {
  local kb limit used cgroup=/sys/fs/cgroup
  if [ -r "${EDGEQWEN_MEMINFO:-/proc/meminfo}" ]; then
    kb=$(awk '/MemAvailable|SwapFree/ {sum += $2} END {print sum}' "${EDGEQWEN_MEMINFO:-/proc/meminfo}")
    limit=$(cat "$cgroup/memory.max" 2>/dev/null || echo max)
    used=$(cat "$cgroup/memory.current" 2>/dev/null || echo 0)
    if [ "$limit" != max ] && [ $(((limit - used) / 1024)) -lt "$kb" ]; then
      kb=$(((limit - used) / 1024))
    fi
    echo "$kb"
  else
    echo $(($(sysctl -n hw.memsize 2>/dev/null || echo 4294967296) / 1024))
  fi
}

# As many compiler processes as there are cores, but 1.5 GB of memory for each: a 1 GB board gets one.
build_jobs() {
  local cores jobs
  cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
  jobs=$(($(available_kb) / 1500000))
  [ "$jobs" -gt "$cores" ] && jobs=$cores
  [ "$jobs" -lt 1 ] && jobs=1
  echo "$jobs"
}

# llama.cpp's AMX kernels mix up sequences of hybrid models (0.5.0-dev), and virtual machines that announce AMX
# may not let it run: one illegal instruction ends the engine. AVX-512 does the same work.
build_arguments() {
  local arguments=-DLLAVA_BUILD=OFF flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  if grep -qw amx_int8 /proc/cpuinfo 2>/dev/null && compiler_takes "$flags"; then
    arguments="$arguments '-DCMAKE_C_FLAGS=$flags' '-DCMAKE_CXX_FLAGS=$flags'"
  fi
  echo "$arguments ${CMAKE_ARGS:-}"
}

# Compilers that are too old for AMX do not know how to leave it out either.
compiler_takes() {
  # shellcheck disable=SC2086 # a list of flags
  "${CXX:-c++}" $1 -x c++ -fsyntax-only /dev/null >/dev/null 2>&1
}

# Runs a command with its output in a log, and says every ten seconds that it is alive.
run_logged() {
  local log=$1 started=$SECONDS told=$SECONDS pid seconds
  shift
  set -m # a process group of its own, so that the compiler goes with it
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  trap 'kill -- "-$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true; say "interrupted"; exit 130' INT TERM HUP
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.5
    seconds=$((SECONDS - started))
    if [ $((SECONDS - told)) -ge 10 ]; then
      told=$SECONDS
      say "  still at it after ${seconds} s: $(what_it_does "$log")"
    fi
  done
  trap - INT TERM HUP
  wait "$pid"
}

what_it_does() {
  if tail -n 3 "$1" | grep -q 'Building wheel'; then
    echo "building llama.cpp, which takes about 5 minutes on two cores"
  else
    tail -n 1 "$1" | cut -c 1-80
  fi
}

# The flags have changed, or there are some and llama.cpp is yet to be built with them.
needs_another_build() {
  [ "$CMAKE_ARGS" != "$1" ] || { [ -n "$CMAKE_ARGS" ] && ! has_llama; }
}

# Nothing was interrupted, and the system's Python is the one it was made with. -I: not what lies in this folder.
is_whole() {
  [ -x .venv/bin/edgeqwen ] && .venv/bin/python -I -c \
    'import sys; from importlib.util import find_spec as f; sys.exit(not (f("edgeqwen") and f("llama_cpp")))' 2>/dev/null
}

prepare() {
  local extra=$1 python stamp built want another="" target=.
  [ -n "$extra" ] && target=".[$extra]"
  stamp=".venv/edgeqwen-installed-${extra:-plain}"
  want=$(cat pyproject.toml scripts/constraints.txt | cksum)
  built=$(cat .venv/edgeqwen-built 2>/dev/null || true)
  CMAKE_ARGS=${CMAKE_ARGS-$built}
  [ -n "${EDGEQWEN_WHEEL_INDEX:-}" ] && CMAKE_ARGS=$built # nothing is built with others
  if [ "$(cat "$stamp" 2>/dev/null)" = "$want $PWD" ] && [ "$CMAKE_ARGS" = "$built" ] && is_whole; then
    return
  fi
  python=$(find_python) || exit 1
  # Without pip where the system's Python has become another one.
  if ! .venv/bin/python -I -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    if [ -e .venv ] && [ ! -e .venv/install.log ] && ! ls .venv/edgeqwen-* >/dev/null 2>&1; then
      fail "there is a .venv here that this script has not made, without pip; move it away"
    fi
    say "making a virtual environment in .venv with $python"
    rm -rf .venv
    mkdir .venv && : >.venv/edgeqwen-made && "$python" -m venv .venv || fail "the virtual environment could not be made; the lines above say why"
  fi
  if [ -z "${EDGEQWEN_WHEEL_INDEX:-}" ] && needs_another_build "$built"; then
    another=yes
  fi
  check_build "$another"
  rm -f .venv/edgeqwen-installed-* # until it is done, nothing counts as installed
  local from=() anew
  if [ -n "${EDGEQWEN_WHEEL_INDEX:-}" ]; then
    say "installing edgeqwen and what it needs, llama.cpp ready-made from $EDGEQWEN_WHEEL_INDEX"
    from=(--extra-index-url "$EDGEQWEN_WHEEL_INDEX" --only-binary llama-cpp-python)
  else
    say "installing edgeqwen and what it needs (the first time, llama.cpp is built: about 5 minutes on two cores)"
  fi
  export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(build_jobs)}
  if [ -n "$another" ]; then
    anew=(--force-reinstall --no-deps)
    # What pip keeps was built without.
    [ -n "$CMAKE_ARGS" ] && anew+=(--no-cache-dir --no-binary llama-cpp-python)
    CMAKE_ARGS=$(build_arguments) run_logged .venv/install.log .venv/bin/python -m pip install \
      --disable-pip-version-check -c scripts/constraints.txt "${anew[@]}" llama-cpp-python || {
      tail -n 15 .venv/install.log >&2
      fail "llama.cpp could not be built so; the whole log is .venv/install.log"
    }
    printf '%s' "$CMAKE_ARGS" >.venv/edgeqwen-built
  fi
  CMAKE_ARGS=$(build_arguments) run_logged .venv/install.log .venv/bin/python -m pip install --disable-pip-version-check \
    -c scripts/constraints.txt ${from[@]+"${from[@]}"} -e "$target" || {
    tail -n 15 .venv/install.log >&2
    if [ -n "${EDGEQWEN_WHEEL_INDEX:-}" ] && grep -q 'llama-cpp-python' .venv/install.log; then
      say "if the index has no wheel for this Python and system, unset EDGEQWEN_WHEEL_INDEX: it is built here then"
    fi
    fail "the installation failed; the whole log is .venv/install.log"
  }
  echo "$want $PWD" >.venv/edgeqwen-installed-plain # whoever has an extra has the rest
  echo "$want $PWD" >"$stamp"
  say "ready"
}
