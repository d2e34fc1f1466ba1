#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fig. 6: the time to the first token of DeepSeek-V2 and V3 over eight GPUs, predicted.
#
#   scripts/reproduce/fig6.sh [--gpu h200] [--lengths 512,1024,2048]
set -euo pipefail
exec python3 "$(dirname "$0")/communication.py" fig6 "$@"
