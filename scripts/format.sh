#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Formats all C++ sources with clang-format; with --check changes nothing and fails if something would change.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=(-i)
case "${1:-}" in
  "") ;;
  --check) mode=(--dry-run --Werror) ;;
  *) echo "format.sh: unknown argument '$1'; only --check is known" >&2; exit 64 ;;
esac
if ! command -v clang-format > /dev/null; then
  echo "format.sh: clang-format is missing; scripts/install_dependencies.sh --dev installs it" >&2
  exit 70
fi

git ls-files -z --cached --others --exclude-standard -- '*.cpp' '*.h' '*.cu' '*.cuh' |
  while IFS= read -r -d '' file; do if [[ -f "$file" ]]; then printf '%s\0' "$file"; fi; done |
  xargs -0 --no-run-if-empty clang-format --style=file "${mode[@]}"
