#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every source and script names its licence in its first line, or its second where the first names an interpreter.

    scripts/spdx.py --check    lists the files that do not; the exit code is 1 if there is one
    scripts/spdx.py --fix      adds the line to them
"""

import sys

from tree import ROOT, source_files

NOTICE = "SPDX-License-Identifier: Apache-2.0"
SLASHES = {".cpp", ".h", ".cu", ".cuh"}
HASHES = {".py", ".sh", ".sbatch", ".cmake"}


def notice_for(path):
    """The line that belongs into the file; None for what is neither source nor script."""
    suffix = path.with_suffix("").suffix if path.suffix == ".in" else path.suffix
    if suffix in SLASHES:
        return f"// {NOTICE}\n"
    if suffix in HASHES or path.name == "CMakeLists.txt" or path.parts[0] == ".ci":
        return f"# {NOTICE}\n"
    return None


def main():
    if sys.argv[1:] not in (["--check"], ["--fix"]):
        sys.exit(__doc__.strip())
    without = []
    for path in source_files():
        notice = notice_for(path)
        if notice is None:
            continue
        lines = (ROOT / path).read_text().splitlines(keepends=True)
        place = 1 if lines and lines[0].startswith("#!") else 0
        if lines[place:place + 1] == [notice]:
            continue
        without.append(path)
        if sys.argv[1] == "--fix":
            (ROOT / path).write_text("".join(lines[:place] + [notice] + lines[place:]))
    for path in without:
        print(f"{path}: {'added' if sys.argv[1] == '--fix' else 'no'} {NOTICE}")
    sys.exit(1 if without and sys.argv[1] == "--check" else 0)


main()
