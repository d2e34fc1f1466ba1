#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Multiple choice by likelihood: 'farskip eval --tasks' beside lm-evaluation-harness on the same items and a real model.
#
#   scripts/reproduce/tasks.sh --out runs/tasks [--model runs/smollm2/model] [--python PYTHON] [more for tasks.py compare]
#
# The model is that of smollm2.sh, the items come from docstrings of Python's standard library. Leaves the items and the
# harness' task in runs/tasks, prints a table and exits with 1 if an accuracy or a standard error differs. PYTHON has torch,
# transformers and lm-eval; without it they are installed into runs/tasks/venv (some GB).
set -euo pipefail
extra=hf
# shellcheck source-path=SCRIPTDIR source=lm_eval.sh
. "$(dirname "$0")/lm_eval.sh"

exec "$python" "$here/tasks.py" compare "$model" "$out/items.jsonl" --out "$out" ${more[@]+"${more[@]}"}
