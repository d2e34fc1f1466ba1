#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fig. 5: what a step gains as the experts of a 16B model are spread over more GPUs, predicted.
#
#   scripts/reproduce/fig5.sh [--device-rate 400TFLOP/s,3TB/s]
set -euo pipefail
exec python3 "$(dirname "$0")/communication.py" fig5 "$@"
