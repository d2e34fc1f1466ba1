#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fig. 7: the time between tokens of DeepSeek-V2 and V3 over two hosts of eight GPUs, batch 1,024, predicted.
#
#   scripts/reproduce/fig7.sh [--gpu h200] [--lengths 512,1024,2048]
set -euo pipefail
exec python3 "$(dirname "$0")/communication.py" fig7 "$@"
