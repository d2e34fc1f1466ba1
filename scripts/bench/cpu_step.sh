#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compares a training step on the CPU with PyTorch: losses first, then time and memory, interleaved.
#
#   scripts/bench/cpu_step.sh [CONFIG] [--rounds 5] [--cores 0,1] [--steps 3] [--warmup 2]
#                             [--skip-losses] [--peer-args "--compile"]
#
# CONFIG defaults to configs/bench/cpu_moe.yaml. PEER_PYTHON names a Python with the packages of
# scripts/bench/requirements.txt; without it a virtual environment is made in .venv.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ -z "${PEER_PYTHON:-}" ]]; then
  PEER_PYTHON=.venv/bin/python
  if [[ ! -x "$PEER_PYTHON" ]]; then python3 -m venv .venv; fi
  .venv/bin/python -m pip install --quiet --requirement scripts/bench/requirements.txt
fi
if [[ ! -x build/release/farskip ]]; then
  echo "cpu_step.sh: build/release/farskip is missing; cmake --preset release && cmake --build --preset release" >&2
  exit 66
fi
exec python3 scripts/bench/compare_step.py --peer-python "$PEER_PYTHON" "$@"
