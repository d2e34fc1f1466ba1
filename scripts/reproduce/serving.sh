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
here=$(cd "$(dirname "$0")" && pwd)
out="" model=runs/smollm2/model python="" more=()
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    -h | --help) sed -n '3,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) more+=("$1"); shift ;;
  esac
done
[ -n "$out" ] || { echo "$0: --out FOLDER is missing" >&2; exit 64; }
[ -f "$model/config.json" ] || { echo "$0: $model holds no model; run scripts/reproduce/smollm2.sh, or name one with --model" >&2; exit 66; }
mkdir -p "$out"

if [ -z "$python" ]; then
  python=$out/venv/bin/python
  [ -x "$python" ] || python3 -m venv "$out/venv"
  "$python" -m pip install --quiet --requirement "$here/../reference/requirements.txt" "lm-eval[api]==0.4.13"
fi

[ -f "$out/items.jsonl" ] || "$python" "$here/tasks.py" make "$out/items.jsonl"
exec "$python" "$here/serving.py" "$model" "$out/items.jsonl" --out "$out" ${more[@]+"${more[@]}"}
