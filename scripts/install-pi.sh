#!/usr/bin/env bash
# Installs edgeqwen on a Raspberry Pi with the 64-bit Raspberry Pi OS, and says so when something does not fit.
# Asks before it changes the system: apt packages, and swap for the compiler on boards with little memory.
#
#   scripts/install-pi.sh [--yes]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/bootstrap.sh

agrees() {
  [ "${yes:-}" = 1 ] && return
  local answer=""
  { printf '%s [y/N] ' "$1" >/dev/tty && read -r answer </dev/tty; } 2>/dev/null || true
  [[ $answer == [yY]* ]]
}

missing_packages() {
  local package
  for package in g++ python3-dev python3-venv; do
    dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' || echo "$package"
  done
}

# The largest file of llama.cpp takes the compiler about 1 GB.
add_swap() {
  [ "$(available_kb)" -ge 1300000 ] && return
  agrees "there are $(($(available_kb) / 1000)) MB of memory and swap; add 1.5 GB of swap in $swap until it is built?" || return 0
  trap remove_swap EXIT
  if ! { sudo fallocate -l 1500M "$swap" && sudo chmod 600 "$swap" &&
    sudo mkswap "$swap" >/dev/null && sudo swapon "$swap"; }; then
    say "warning: the swap could not be added; going on without"
  fi
}

remove_swap() {
  sudo swapoff "$swap" 2>/dev/null || true
  sudo rm -f "$swap"
}

swap=/var/swap-edgeqwen
case "$*" in
  "") ;;
  --yes) yes=1 ;;
  *) say "usage: scripts/install-pi.sh [--yes]" && exit 2 ;;
esac
command -v dpkg-query >/dev/null || fail "this is not Raspberry Pi OS or another Debian; use scripts/run"
system=$(dpkg --print-architecture) # the kernel may be 64-bit where the system is not
[ "$system" = arm64 ] || fail "this system is $system; edgeqwen needs the 64-bit Raspberry Pi OS (arm64)"
missing=$(missing_packages | tr '\n' ' ')
if [ -n "$missing" ]; then
  agrees "install with apt: $missing?" || fail "without them llama.cpp cannot be built"
  sudo apt-get update || say "warning: the lists of packages could not be renewed; going on with those that are here"
  # shellcheck disable=SC2086 # a list of names
  sudo apt-get install -y $missing
fi
add_swap
say "building llama.cpp takes a Pi a while; a line every ten seconds says that it goes on"
prepare ""
.venv/bin/edgeqwen doctor || say "doctor has found something, see above"
say 'done. Next: .venv/bin/edgeqwen run demo "Which model for a Raspberry Pi?"'
