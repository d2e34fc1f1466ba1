#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the code and docs/architecture.md to the layers that CMakeLists.txt states.

  scripts/layers.py            draws the arrows of the page anew
  scripts/layers.py --check    changes nothing; exits 1 if the drawn arrows differ from CMakeLists.txt, if a file
                               includes a header of a layer that its own layer does not use, or if CMakeLists.txt
                               names an arrow that no include needs or that others imply, or if a header of
                               include/ is not one that the consumer of tests/consumer needs: others lie in src/,
                               or if a kernel is not found under the name of its op's file
"""

import difflib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- layers: drawn by scripts/layers.py -->", "<!-- end of layers -->"


def read_layers():
    """Layer -> layers it names after USES, in the order of CMakeLists.txt."""
    text = re.sub(r"#.*", "", (ROOT / "CMakeLists.txt").read_text())
    layers = {}
    for name, rest in re.findall(r"^farskip_layer\(\s*(\w+)([^)]*)\)", text, re.MULTILINE):
        used = re.search(r"\bUSES\s+(.*?)(?=\bLINK\b|\bREGISTER\b|$)", rest, re.DOTALL)
        layers[name] = used.group(1).split() if used else []
        for other in layers[name]:
            if other not in layers:
                sys.exit(f"CMakeLists.txt: {name} uses {other}, which is not listed before it")
    if not layers:
        sys.exit("CMakeLists.txt: no farskip_layer(...) found")
    return layers


def draw(layers):
    # Node names in capitals: "graph" is a word of the drawing language.
    lines = ["```mermaid", "flowchart BT"]
    lines += [f'  {name.upper()}["{name}"]' for name in layers]
    lines += [f"  {name.upper()} --> {other.upper()}" for name, used in layers.items() for other in used]
    return "\n".join(lines + ["```"])


def find_page_problems(page, drawn):
    if drawn == page:
        return []
    difference = difflib.unified_diff(page.splitlines(), drawn.splitlines(), "docs/architecture.md",
                                      "CMakeLists.txt", lineterm="")
    return list(difference) + ["docs/architecture.md: arrows differ; scripts/layers.py draws them anew"]


def find_reachable(layers):
    """Layer -> the layers whose headers it may include, itself among them."""
    reachable = {}
    for name, used in layers.items():
        reachable[name] = {name}.union(*(reachable[other] for other in used))
    return reachable


def find_include_problems(layers):
    reachable = find_reachable(layers)
    included = {name: set() for name in layers}
    problems = []
    for folder in ("include/farskip", "src"):
        for path in sorted((ROOT / folder).glob("*/**/*.*")):
            layer = path.relative_to(ROOT / folder).parts[0]
            if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
                continue
            where = path.relative_to(ROOT)
            if layer not in layers:
                problems.append(f"{where}: CMakeLists.txt has no layer {layer}")
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                header = re.match(r'\s*#\s*include\s*["<](?:farskip/)?(\w+)/', line)
                if not header or (header.group(1) not in layers and "farskip/" not in line):
                    continue
                included[layer].add(header.group(1))
                if header.group(1) not in reachable[layer]:
                    problems.append(f"{where}:{number}: layer {layer} does not use layer {header.group(1)}")
    for name, used in layers.items():
        for other in used:
            if other not in included[name]:
                problems.append(f"CMakeLists.txt: {name} uses {other}, but no file of {name} includes a header of it")
            implied = [third for third in used if third != other and other in reachable[third]]
            if implied:
                problems.append(f"CMakeLists.txt: {name} uses {other} through {implied[0]} already")
    return problems


def find_public_problems():
    """Headers that are installed although the program of somebody else (tests/consumer) does not need them."""
    needed, found = set(), [ROOT / "tests/consumer/main.cpp"]
    while found:
        included = re.findall(r'^#include "(farskip/[^"]+)"', found.pop().read_text(), re.MULTILINE)
        new = [ROOT / "include" / name for name in included if name not in needed]
        needed.update(included)
        found += [path for path in new if path.exists()]
    headers = [str(path.relative_to(ROOT / "include")) for path in sorted((ROOT / "include").rglob("*.h"))]
    return [f"include/{name}: tests/consumer does not need it: it belongs into src/" for name in headers
            if name not in needed]


def find_kernel_problems():
    """Kernels of an op of src/ops/F.cpp that are registered elsewhere than in src/backend/cpu/F.cpp or cuda/F.cu."""
    ops = {path: set(re.findall(r'"(\w+)"', path.read_text())) for path in (ROOT / "src/ops").rglob("*.cpp")}
    known = set(re.findall(r'\.name = "(\w+)"', "".join(path.read_text() for path in ops)))
    problems = []
    for backend in ("cpu", "cuda"):
        folder = ROOT / "src/backend" / backend
        for path in sorted([*folder.rglob("*.cpp"), *folder.rglob("*.cu")]):
            home = ROOT / "src/ops" / path.relative_to(folder).with_suffix(".cpp")
            registers = path.read_text().partition("(KernelTable& table) {")[2]
            for op in sorted(set(re.findall(r'"(\w+)"', registers)) & known - ops.get(home, set())):
                problems.append(f"{path.relative_to(ROOT)}: a kernel of {op}, whose rules stand elsewhere")
    return problems


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__.strip())
    layers = read_layers()
    page = PAGE.read_text()
    parts = re.split(f"({BEGIN}\n)(.*?)({END})", page, flags=re.DOTALL)
    if len(parts) != 5:
        sys.exit(f"docs/architecture.md: one block between '{BEGIN}' and '{END}' is needed")
    drawn = "".join(parts[:2] + [draw(layers) + "\n"] + parts[3:])
    problems = find_include_problems(layers) + find_public_problems() + find_kernel_problems()
    if sys.argv[1:]:
        problems = find_page_problems(page, drawn) + problems
    elif drawn != page:
        PAGE.write_text(drawn)
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


main()
