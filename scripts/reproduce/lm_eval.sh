# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts that compare with lm-evaluation-harness (serving.sh, tasks.sh), which set `extra` to the part of
# lm-eval that they need. Reads their options, finds or installs a Python, makes the items; sets out, model, python and more.
here=$(cd "$(dirname "$0")" && pwd)
out="" model=runs/smollm2/model python="" more=()
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    -h | --help) sed -n '3,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) more+=("$1"); shift ;;
  esac
done
[ -n "$out" ] || { echo "$0: --out FOLDER is missing" >&2; exit 64; }
[ -f "$model/config.json" ] || { echo "$0: $model holds no model; run scripts/reproduce/smollm2.sh, or name one with --model" >&2; exit 66; }
mkdir -p "$out"

if [ -z "$python" ]; then
  python=$out/venv/bin/python
  [ -x "$python" ] || python3 -m venv "$out/venv"
  "$python" -m pip install --quiet --requirement "$here/../reference/requirements.txt" "lm-eval[${extra:?}]==0.4.13"
fi

[ -f "$out/items.jsonl" ] || "$python" "$here/tasks.py" make "$out/items.jsonl"
