#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All GPUs of this host at work: first whether the results are right, then how fast they come, beside what was predicted.
#
#   scripts/bench/multi_gpu.sh [--only checks,small,models,prefill,conversion] [--out FOLDER] [more for multi_gpu.py]
#   scripts/bench/multi_gpu.sh --predict --ranks 8          # what farskip plan says of it, on any machine
#   scripts/bench/multi_gpu.sh --rehearse --ranks 4         # the same runs, tiny, between CPU ranks
#
# Needs a build with CUDA, or a build of any kind for the last two. PEER_PYTHON names a Python with torch (default python3);
# without one the peers are left out. On eight H200s about ten minutes.
set -euo pipefail
exec python3 "$(dirname "$0")/multi_gpu.py" "$@"
