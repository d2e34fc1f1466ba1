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
here=$(cd "$(dirname "$0")" && pwd)
out="" model=runs/smollm2/model python="" more=()
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    -h | --help) sed -n '3,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) more+=("$1"); shift ;;
  esac
done
[ -n "$out" ] || { echo "$0: --out FOLDER is missing" >&2; exit 64; }
[ -f "$model/config.json" ] || { echo "$0: $model holds no model; run scripts/reproduce/smollm2.sh, or name one with --model" >&2; exit 66; }
mkdir -p "$out"

if [ -z "$python" ]; then
  python=$out/venv/bin/python
  [ -x "$python" ] || python3 -m venv "$out/venv"
  "$python" -m pip install --quiet --requirement "$here/../reference/requirements.txt" "lm-eval[hf]==0.4.13"
fi

[ -f "$out/items.jsonl" ] || "$python" "$here/tasks.py" make "$out/items.jsonl"
exec "$python" "$here/tasks.py" compare "$model" "$out/items.jsonl" --out "$out" ${more[@]+"${more[@]}"}
