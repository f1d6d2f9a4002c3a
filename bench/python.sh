# What the benchmarks against Python share. Sourced by them, after script/lib.sh.

# Fetches a Python package with what it needs, once; prints the folder.
#   python_package <name> <requirement> <what to say>
python_package() {
  local cache=${EMLX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emlx} folder part
  folder=$cache/python-$1

  if [ ! -d "$folder" ]; then
    say "fetching $3, once" >&2
    mkdir -p "$cache"
    part=$folder.$$.part
    python3 -m pip --disable-pip-version-check install --no-compile --target "$part" "$2" >&2 ||
      fail "pip could not install $2 (see above); run this again when it can"
    mv "$part" "$folder"
  fi
  echo "$folder"
}

# Python MLX of the version that the NIF has; sets `packages` to where it is.
python_mlx() {
  packages=$(python_package mlx-0.32.2 "mlx[cpu]==0.32.2" "Python MLX (12 MB)")
}

# XLA by way of JAX; sets `xla` to where it is.
python_xla() {
  xla=$(python_package jax-0.10.2 "jax[cpu]==0.10.2" "JAX (150 MB)")
}
