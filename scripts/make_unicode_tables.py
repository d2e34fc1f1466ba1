#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/data/unicode_tables.cpp from Python's unicodedata: what normal form C needs.

Run again to move to another Unicode version:  scripts/make_unicode_tables.py > src/data/unicode_tables.cpp
"""
import unicodedata


def canonical_decomposition(c):
    text = unicodedata.decomposition(chr(c))
    return [] if not text or text.startswith("<") else [int(part, 16) for part in text.split()]


def rows(entries, width=108):
    lines, line = [], "   "
    for entry in entries:
        if len(line) + len(entry) + 1 > width:
            lines.append(line)
            line = "   "
        line += " " + entry
    return "\n".join(lines + [line])


code_points = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
hangul = range(0xAC00, 0xD7A4)
decompositions = []
for c in code_points:
    parts = canonical_decomposition(c)
    if parts and c not in hangul:
        first, second = parts if len(parts) == 2 else (parts[0], 0)
        composes = second and unicodedata.normalize("NFC", chr(first) + chr(second)) == chr(c)
        decompositions.append(f"{{{c:#x},{first:#x},{second:#x},{int(bool(composes))}}},")

classes = []
for c in code_points:
    value = unicodedata.combining(chr(c))
    if value and classes and classes[-1][1] == c - 1 and classes[-1][2] == value:
        classes[-1][1] = c
    elif value:
        classes.append([c, c, value])

print(f"""// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_unicode_tables.py from Unicode {unicodedata.unidata_version}; do not edit.
// clang-format off
// NOLINTBEGIN(modernize-use-bool-literals)
#include "data/unicode_tables.h"

namespace farskip {{
namespace {{

constexpr CanonicalDecomposition kDecompositions[] = {{
{rows(decompositions)}
}};

constexpr CombiningClassRange kCombiningClasses[] = {{
{rows([f"{{{a:#x},{b:#x},{v}}}," for a, b, v in classes])}
}};

}}  // namespace

std::span<const CanonicalDecomposition> canonical_decompositions() {{ return kDecompositions; }}
std::span<const CombiningClassRange> combining_class_ranges() {{ return kCombiningClasses; }}

}}  // namespace farskip
// NOLINTEND(modernize-use-bool-literals)""")
