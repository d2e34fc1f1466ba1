#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What third_party/cmake/version.cmake takes for the commit: in a clone, in an archive that git made, outside git.

    version_test.py CMAKE

Exits 77 (skipped) where git is not installed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
FILES = ("version.cmake", "version.cpp.in", "archive_commit.txt")


def stated_commit(tree):
    output = tree / "version.cpp"
    subprocess.run([sys.argv[1], f"-DSOURCE_DIR={tree}", "-DVERSION=0.1.0", f"-DOUTPUT={output}",
                    "-P", tree / "third_party/cmake/version.cmake"], check=True)
    version, commit = re.findall(r'return "(.*)";', output.read_text())
    output.unlink()
    assert version == "0.1.0", version
    return commit


def git(tree, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=tree, check=True, capture_output=True).stdout.strip()


def expect(commit, pattern):
    print(commit)
    assert re.fullmatch(pattern, commit), f"{commit}, not {pattern}"


def unpack(tree, folder):
    folder.mkdir()
    subprocess.run(["tar", "--extract"], cwd=folder, check=True,
                   input=subprocess.run(["git", "archive", "HEAD"], cwd=tree, check=True, capture_output=True).stdout)
    return folder


with tempfile.TemporaryDirectory() as name:
    clone = Path(name) / "clone"
    (clone / "third_party/cmake").mkdir(parents=True)
    for file in FILES:
        shutil.copy(SOURCE / "third_party/cmake" / file, clone / "third_party/cmake")
    shutil.copy(SOURCE / ".gitattributes", clone)
    # In an archive that these files come from, git has filled in the commit.
    (clone / "third_party/cmake/archive_commit.txt").write_text("$Format:%h %(describe:tags=true)$\n")
    expect(stated_commit(clone), "unknown")
    if not shutil.which("git"):
        print("skipped: no git here")
        sys.exit(77)
    git(clone, "init", "--quiet")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=first")
    expect(stated_commit(clone), "[0-9a-f]{7,}")
    expect(stated_commit(unpack(clone, Path(name) / "untagged")), "[0-9a-f]{7,}")
    git(clone, "tag", "v0.1.0")
    expect(stated_commit(clone), "v0.1.0")
    expect(stated_commit(unpack(clone, Path(name) / "tagged")), "v0.1.0")
    git(clone, "commit", "--quiet", "--allow-empty", "--message=second")
    expect(stated_commit(clone), "v0.1.0-1-g[0-9a-f]{7,}")
    (clone / "third_party/cmake/version.cpp.in").open("a").write("\n")
    expect(stated_commit(clone), "v0.1.0-1-g[0-9a-f]{7,}-dirty")
