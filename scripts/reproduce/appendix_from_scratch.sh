#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Appendix: training from scratch in FarSkip wiring against the standard one, in pairs of equal seeds.
#
#   scripts/reproduce/appendix_from_scratch.sh --config configs/quickstart/teacher.yaml --seeds 1,2,3 --out runs/scratch
#
# Prints both losses and their difference with a 95% interval.
set -euo pipefail
exec python3 "$(dirname "$0")/from_scratch.py" "$@"
