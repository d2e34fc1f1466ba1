# SPDX-License-Identifier: Apache-2.0
"""The files of the source tree, for scripts that check them: in a clone and in an unpacked archive alike."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {".git", ".venv", "__pycache__", "build", "runs", "third_party/cudnn_frontend"}  # as in .gitignore


def source_files():
    """Paths relative to ROOT, in order."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if name not in NOT_OURS and str(here / name) not in NOT_OURS]
        found += [here / name for name in files if not (Path(folder) / name).is_symlink()]
    return sorted(found)
