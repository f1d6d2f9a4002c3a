# shellcheck shell=bash
# What script/bootstrap and script/test share. Sourced, never run; $name is the script's own name, for its messages.

# shellcheck disable=SC2034
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Elixir wants UTF-8, and a bare container has none set.
case ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} in
  *[Uu][Tt][Ff]*8*) ;;
  *) if [ "$(uname -s)" = Darwin ]; then export LC_ALL=en_US.UTF-8; else export LC_ALL=C.UTF-8; fi ;;
esac

# rustup installs here, and only a login shell has it in its PATH.
case :$PATH: in
  *":$HOME/.cargo/bin:"*) ;;
  *) export PATH="$PATH:$HOME/.cargo/bin" ;;
esac

say() {
  echo "${name:?}: $*" >&2
}

fail() {
  say "$*"
  exit 1
}

have() {
  command -v "$1" >/dev/null 2>&1
}
