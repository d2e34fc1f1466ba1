#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Table 1: what the teacher, its untrained conversion, SFT and self-distillation (FCSD) are worth.
#
#   scripts/reproduce/table1.sh --teacher runs/quickstart/teacher --validation runs/quickstart/tokens-validation \
#     --config configs/quickstart/distill.yaml --out runs/table1
#
# Prints the table and leaves it, with its numbers, in the folder --out. --help lists the options.
set -euo pipefail
exec python3 "$(dirname "$0")/conversion.py" table1 "$@"
