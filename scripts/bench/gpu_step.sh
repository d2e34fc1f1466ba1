#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Times a training step on the GPU and the same in PyTorch, in turns on the same card, and prints both.
#
#   scripts/bench/gpu_step.sh [CONFIG] [--rounds 3] [--steps 30] [key=value ...]
#
# CONFIG defaults to configs/bench/gpu_v2_lite.yaml. PEER_PYTHON names a Python with torch and pyyaml (default
# python3), PEER_ARGS further arguments of torch_step_gpu.py, FARSKIP the trainer. One line a run: step time, p99,
# rate, and what of the card's memory was in use at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."

config=configs/bench/gpu_v2_lite.yaml rounds=3 steps=30 overrides=()
if [[ $# -gt 0 && $1 != --* && $1 != *=* ]]; then
  config=$1
  shift
fi
while [[ $# -gt 0 ]]; do
  case "$1" in
    --rounds) rounds=$2; shift 2 ;;
    --steps) steps=$2; shift 2 ;;
    *=*) overrides+=("$1"); shift ;;
    *) echo "gpu_step.sh: unknown argument '$1'" >&2; exit 64 ;;
  esac
done
farskip=${FARSKIP:-build/release/farskip}
python=${PEER_PYTHON:-python3}
read -ra peer_arguments <<< "${PEER_ARGS:-}"

show() {
  "$python" -c '
import json, sys
r = json.loads([line for line in sys.stdin if line.startswith("{")][-1])
memory = r.get("device_used_bytes", r.get("peak_memory_bytes", 0))
print("%s, %s: step %.1f ms, p99 %.1f ms, %.0f tokens/s, %.1f model TFLOP/s, %.1f GB" % (
    sys.argv[1], r["device"], 1e3 * r["step_seconds"], 1e3 * r["step_seconds_p99"], r["tokens_per_second"],
    r["model_tflops"], memory / 1e9))
' "$1"
}

for ((round = 1; round <= rounds; ++round)); do
  "$farskip" bench step "$config" "${overrides[@]}" --device cuda --steps "$steps" --json | show "round $round, farskip"
  "$python" scripts/bench/torch_step_gpu.py "$config" "${overrides[@]}" --steps "$steps" --json \
    "${peer_arguments[@]}" | show "round $round, torch"
done
