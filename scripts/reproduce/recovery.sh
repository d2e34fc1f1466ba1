#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The share of the gap that distillation closes, by tokens trained on: longer runs of KL and of SFT.
#
#   scripts/reproduce/recovery.sh --teacher runs/quickstart/teacher --validation runs/quickstart/tokens-validation \
#     --config configs/quickstart/distill.yaml --long-steps 600 --out runs/recovery
#
# Prints the table and leaves it, with its numbers, in the folder --out. --help lists the options.
set -euo pipefail
exec python3 "$(dirname "$0")/conversion.py" recovery "$@"
