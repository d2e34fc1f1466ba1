#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that what the pages (*.md) link to is there: files, folders, and headings named after a #.

    scripts/check_links.py

Prints PAGE:LINE: what is wrong for each link that leads nowhere; the exit code is 1 if there is one. Links that leave the
repository (https:, mailto:) are not followed.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

from tree import ROOT, source_files

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\s*\[[^\]]+\]:\s*(\S+)")
ELEMENT = re.compile(r"<(?:a|img)\s[^>]*\b(?:href|src)=[\"']([^\"']+)[\"']")
NAME = re.compile(r"<a\s[^>]*\b(?:id|name)=[\"']([^\"']+)[\"']")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")


def read_text_lines(page):
    """(number, line) of what is not code; inline code stays a word, without what is in it."""
    fence = None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and fence is None:
            fence = mark.group(1)
        elif mark and line.strip().startswith(fence):
            fence = None
        elif fence is None:
            yield number, line


def anchor_of(heading):
    """As GitHub makes it: the text in small letters, spaces to hyphens, other punctuation left out."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def anchors_of(page, known={}):
    if page not in known:
        counts, anchors = {}, set()
        for _, line in read_text_lines(page):
            anchors.update(NAME.findall(line))
            if heading := HEADING.match(line):
                anchor = anchor_of(heading.group(1))
                counts[anchor] = counts.get(anchor, -1) + 1
                anchors.add(anchor if counts[anchor] == 0 else f"{anchor}-{counts[anchor]}")
        known[page] = anchors
    return known[page]


def find_problem(page, target, files):
    """What is wrong with a link of `page`; None if nothing is."""
    path, _, anchor = target.partition("#")
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    goal = page
    if path:
        start = ROOT if path.startswith("/") else ROOT / page.parent
        place = (start / unquote(path).lstrip("/")).resolve()
        if not place.is_relative_to(ROOT):
            return "leads out of the repository"
        goal = place.relative_to(ROOT)
        if goal not in files and not any(goal in file.parents for file in files):
            return "is not there"
    if anchor and goal.suffix == ".md" and unquote(anchor) not in anchors_of(goal):
        return f"{goal} has no heading #{anchor}"
    if anchor and goal.suffix != ".md":
        line = re.fullmatch(r"L(\d+)(-L\d+)?", anchor)
        if not line or int(line.group(1)) > len((ROOT / goal).read_text().splitlines()):
            return f"{goal} has no {anchor}"
    return None


def main():
    if len(sys.argv) > 1:
        sys.exit(__doc__.strip())
    files = set(source_files())
    pages = [file for file in files if file.suffix == ".md"]
    problems, count = [], 0
    for page in sorted(pages):
        for number, line in read_text_lines(page):
            text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "code", line)
            targets = [a or b for a, b in LINK.findall(text)] + ELEMENT.findall(text)
            count += len(targets)
            for target in targets:
                if problem := find_problem(page, target, files):
                    problems.append(f"{page}:{number}: {target}: {problem}")
    print("\n".join(problems) if problems else f"{count} links on {len(pages)} pages lead somewhere")
    sys.exit(1 if problems else 0)


main()
