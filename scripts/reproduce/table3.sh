#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Table 3: how much of the all-to-alls is hidden, and what a step gains: measured with two ranks here, predicted for the
# paper's shapes (16B over 8 GPUs; 6 layers of DeepSeek-V3) over 400 Gb/s and NVLink.
#
#   scripts/reproduce/table3.sh [--predicted-only] [--rate 100mbit] [--device-rate 400TFLOP/s,3TB/s]
set -euo pipefail
exec python3 "$(dirname "$0")/communication.py" table3 "$@"
