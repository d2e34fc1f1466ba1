#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program on a processor of 2008 says what it lacks, instead of dying of an illegal instruction.

    old_processor.py FARSKIP

Exits 77 (skipped) where qemu-x86_64 (package qemu-user) is not installed or the program is not one for x86-64.
"""

import platform
import shutil
import subprocess
import sys

emulator = shutil.which("qemu-x86_64")
if not emulator or platform.machine() != "x86_64":
    print("skipped: no qemu-x86_64 here (package qemu-user)")
    sys.exit(77)
done = subprocess.run([emulator, "-cpu", "Nehalem", sys.argv[1], "--version"], capture_output=True, text=True, timeout=60)
print(done)
built_for_all = done.returncode == 0 and done.stdout.startswith("farskip ")  # FARSKIP_ARCH=x86-64 or -v2
lines = done.stderr.splitlines()
refused = done.returncode == 70 and len(lines) == 1 and lines[0].startswith("farskip: error: ") and "avx" in lines[0]
sys.exit(0 if refused or built_for_all else 1)
