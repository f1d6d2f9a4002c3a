# What the benchmarks against Python share. Sourced by them, after script/lib.sh.
# shellcheck shell=bash

# Fetches Python packages with what they need, once; prints the folder.
#   python_package <name> <what to say> <requirement>...
python_package() {
  local cache=${EMLX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emlx} folder part what
  folder=$cache/python-$1 what=$2
  shift 2

  if [ ! -d "$folder" ]; then
    say "fetching $what, once" >&2
    mkdir -p "$cache"
    part=$folder.$$.part
    python3 -m pip --disable-pip-version-check install --no-compile --target "$part" "$@" >&2 ||
      fail "pip could not install $* (see above); run this again when it can"
    mv "$part" "$folder"
  fi
  echo "$folder"
}

# Python MLX of the version that the NIF has; sets `packages` to where it is.
python_mlx() {
  packages=$(python_package mlx-0.32.2 "Python MLX (12 MB)" "mlx[cpu]==0.32.2")
}

# mlx-lm with Python MLX; sets `packages` to where both are. Its models need nothing else of what its package asks for.
python_mlx_lm() {
  python_mlx
  packages=$packages:$(python_package mlx-lm-0.32.2 "mlx-lm (1 MB)" --no-deps mlx-lm==0.32.2)
}

# XLA by way of JAX; sets `packages` to where it is.
python_xla() {
  packages=$(python_package jax-0.10.2-safetensors "JAX (150 MB)" "jax[cpu]==0.10.2" safetensors==0.8.0)
}

# NumPy; sets `packages` to where it is.
python_numpy() {
  packages=$(python_package numpy-2.3.5-safetensors "NumPy (17 MB)" numpy==2.3.5 safetensors==0.8.0)
}

# ONNX Runtime, with the package that writes its models; sets `packages` to where they are.
python_onnxruntime() {
  packages=$(python_package onnxruntime-1.32.0 "ONNX Runtime (60 MB)" onnxruntime==1.32.0 onnx==1.23.2 safetensors==0.8.0)
}

# OpenVINO, with the package that writes its models; sets `packages` to where they are.
python_openvino() {
  packages=$(python_package openvino-2026.4.1 "OpenVINO (90 MB)" openvino==2026.4.1 onnx==1.23.2 safetensors==0.8.0)
}

# PyTorch for CUDA; sets `packages` to where it is, or to nothing if Python has it already.
python_torch() {
  packages=
  python3 -c 'import safetensors, torch; assert torch.cuda.is_available()' 2>/dev/null ||
    packages=$(python_package torch-2.11.0-safetensors "PyTorch (2.5 GB)" torch==2.11.0 numpy==2.3.5 safetensors==0.8.0)
}
