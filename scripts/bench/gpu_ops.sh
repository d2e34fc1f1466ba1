#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Times the ops of a layer and the same ones in PyTorch, one after the other on the same card, and prints both.
#
#   scripts/bench/gpu_ops.sh [CONFIG] [--rounds 20]
#
# CONFIG defaults to configs/bench/gpu_v2_lite.yaml. PEER_PYTHON names a Python with torch and pyyaml (default
# python3).
set -euo pipefail
cd "$(dirname "$0")/../.."

config=configs/bench/gpu_v2_lite.yaml
if [[ $# -gt 0 && $1 != --* ]]; then
  config=$1
  shift
fi
farskip=${FARSKIP:-build/release/farskip}
ours=$(mktemp)
trap 'rm -f "$ours"' EXIT
"$farskip" bench ops "$config" --json "$@" | tee "$ours"
"${PEER_PYTHON:-python3}" scripts/bench/torch_ops.py "$config" --ours "$ours" "$@"
