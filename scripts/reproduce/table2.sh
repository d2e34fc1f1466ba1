#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Table 2: ablations of distillation (losses, frozen tensors, batch size, share of converted layers).
#
#   scripts/reproduce/table2.sh --teacher runs/quickstart/teacher --validation runs/quickstart/tokens-validation \
#     --config configs/quickstart/distill.yaml --out runs/table2
#
# Prints the table and leaves it, with its numbers, in the folder --out. --help lists the options.
set -euo pipefail
exec python3 "$(dirname "$0")/conversion.py" table2 "$@"
