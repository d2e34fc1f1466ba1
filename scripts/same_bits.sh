#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Keeps the bits of small training runs, and compares those of another build with them. For changes that must not
# change any number; see same_bits.py, which does the work.
#
#   scripts/same_bits.sh keep FOLDER [--farskip BINARY]
#   scripts/same_bits.sh compare FOLDER [--farskip BINARY]
set -euo pipefail
exec python3 -B "$(dirname "$0")/same_bits.py" "$@"
