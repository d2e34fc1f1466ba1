#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# clang-tidy with the checks of .clang-tidy: scripts/lint.sh [FILE.cpp ...], without FILE on all sources but CUDA's.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v clang-tidy > /dev/null; then
  echo "lint.sh: clang-tidy is missing; scripts/install_dependencies.sh --dev installs it" >&2
  exit 70
fi
# A preset without precompiled headers: clang cannot read GCC's.
cmake --preset debug -DFARSKIP_CUDA=OFF > /dev/null
if (($# == 0)); then
  mapfile -t files < <(git ls-files '*.cpp' ':!*/cuda/*' ':!*/gpu/*')
else
  files=("$@")
fi
printf '%s\0' "${files[@]}" | xargs -0 --max-args=1 --max-procs="$(nproc)" clang-tidy --quiet -p build/debug
