#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fig. 3: conversion without training, of the first N and of the last N layers.
#
#   scripts/reproduce/fig3.sh --teacher runs/quickstart/teacher --validation runs/quickstart/tokens-validation \
#     --out runs/fig3
#
# Prints the table and leaves it, with its numbers, in the folder --out. --help lists the options.
set -euo pipefail
exec python3 "$(dirname "$0")/conversion.py" fig3 "$@"
