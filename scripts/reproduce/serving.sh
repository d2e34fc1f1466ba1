#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# 'farskip serve' and its clients, on a real model: lm-evaluation-harness against the server beside 'farskip eval --tasks',
# and the throughput of many clients beside 'farskip generate'.
#
#   scripts/reproduce/serving.sh --out runs/serving [--model runs/smollm2/model] [--python PYTHON] [more for serving.py]
#
# The model is that of smollm2.sh, the items are those of tasks.sh. Prints two tables, leaves them in runs/serving and exits
# with 1 if an accuracy or a standard error differs. PYTHON has transformers and lm-eval[api]; without it they are installed into
# runs/serving/venv.
set -euo pipefail
extra=api
# shellcheck source-path=SCRIPTDIR source=lm_eval.sh
. "$(dirname "$0")/lm_eval.sh"

exec "$python" "$here/serving.py" "$model" "$out/items.jsonl" --out "$out" ${more[@]+"${more[@]}"}
