# shellcheck shell=bash
# Functions of script/bootstrap, script/demo and script/test, which source this file. $name is the script's name, for
# its messages.

# shellcheck disable=SC2034
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Elixir expects a UTF-8 locale, and a bare container has none.
case ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} in
  *[Uu][Tt][Ff]*8*) ;;
  *) if [ "$(uname -s)" = Darwin ]; then export LC_ALL=en_US.UTF-8; else export LC_ALL=C.UTF-8; fi ;;
esac

# rustup installs to this folder, which is only in a login shell's PATH.
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
