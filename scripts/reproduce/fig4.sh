#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fig. 4: the time to the first token of Llama 4 Scout over eight GPUs, predicted.
#
#   scripts/reproduce/fig4.sh [--gpu h200] [--lengths 512,1024,2048]
set -euo pipefail
exec python3 "$(dirname "$0")/communication.py" fig4 "$@"
