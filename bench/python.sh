# What the benchmarks against Python MLX share. Sourced by them, after script/lib.sh.

# Fetches Python MLX of the version that the NIF has, once; sets `packages` to where it is.
python_mlx() {
  local cache=${EMLX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emlx} version=0.32.2 part
  packages=$cache/python-mlx-$version

  if [ ! -d "$packages" ]; then
    say "fetching Python MLX $version (12 MB, once)"
    mkdir -p "$cache"
    part=$packages.$$.part
    python3 -m pip --disable-pip-version-check install --no-compile --target "$part" "mlx[cpu]==$version" ||
      fail "pip could not install mlx (see above); run this again when it can"
    mv "$part" "$packages"
  fi
}
