#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Token files of documentation for studies of conversion: what Debian's documentation packages and the docstrings of
# Python packages say.
#
#   scripts/reproduce/documentation_data.sh --tokenizer runs/smollm2/model/tokenizer.json --out runs/documentation
#
# Leaves PREFIX.bin and .idx for training (OUT/tokens) and held out (OUT/tokens-validation: one page in --holdout-every,
# 50). --debian and --python name other packages, as one argument each; "" takes none. --farskip, --most (MB of text from
# a package) as in documentation_text.py. Needs apt-get, dpkg-deb and pip; about 400 MB are fetched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
debian="apache2-doc cmake-doc debian-policy debian-reference-en developers-reference git-doc glibc-doc manpages manpages-dev
  octave-doc perl-doc postgresql-doc-15 python3.11-doc python-django-doc python-pandas-doc python-scipy-doc sqlite3-doc"
python="astropy dask django matplotlib networkx numpy pandas scikit-image scikit-learn scipy sqlalchemy statsmodels sympy xarray"
out="" tokenizer="" farskip=build/release/farskip most=8 holdout=50
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 ;;
    --tokenizer) tokenizer=$2 ;;
    --farskip) farskip=$2 ;;
    --debian) debian=$2 ;;
    --python) python=$2 ;;
    --most) most=$2 ;;
    --holdout-every) holdout=$2 ;;
    *) sed -n '3,11s/^# \{0,1\}//p' "$0"; exit 64 ;;
  esac
  shift 2
done
[ -n "$out" ] && [ -n "$tokenizer" ] || { echo "$0: --out FOLDER and --tokenizer FILE are needed" >&2; exit 64; }
mkdir -p "$out/packages" "$out/unpacked"
out=$(cd "$out" && pwd)

for package in $debian; do
  [ -d "$out/unpacked/$package" ] && continue
  (cd "$out/packages" && apt-get --quiet --quiet download "$package")
  dpkg-deb --extract "$out/packages/$package"_*.deb "$out/unpacked/$package"
done
for package in $python; do
  [ -d "$out/unpacked/$package" ] && continue
  python3 -m pip install --quiet --no-deps --no-compile --target "$out/unpacked/$package" "$package"
done

rm -rf "$out/text"
"$here/documentation_text.py" "$out"/unpacked/* --out "$out/text" --most "$most" --docstrings
"$farskip" data tokenize "$out/text" --tokenizer "$tokenizer" --out "$out/tokens" --holdout-every "$holdout"
