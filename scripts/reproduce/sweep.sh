#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The hyperparameters of distillation, chosen as in the paper: the batch, then the learning rate, by training loss.
#
#   scripts/reproduce/sweep.sh --teacher runs/quickstart/teacher --validation runs/quickstart/tokens-validation \
#     --config configs/quickstart/distill.yaml --batches 8,16,32 --rates 5e-4,1e-3,2e-3 --seeds 1 --out runs/sweep
#
# Prints the table and what it chose, and leaves both, with the numbers, in the folder --out.
set -euo pipefail
exec python3 "$(dirname "$0")/conversion.py" sweep "$@"
