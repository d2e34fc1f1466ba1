#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The text of unpacked documentation packages as files for 'farskip data': one .txt a page, in a folder a package.

    apt-get download python3.11-doc && dpkg -x python3.11-doc_*.deb unpacked/python3.11-doc
    scripts/reproduce/documentation_text.py unpacked/* --out text

HTML loses its markup, compressed pages are unpacked, manual pages lose their macros; of a Python source, --docstrings keeps
the docstrings. Pages that another one repeats, pages in other languages than English, and lines that a package has on many
of its pages (menus, footers) are left out.
"""
import argparse
import ast
import collections
import gzip
import hashlib
import html
import pathlib
import re

SKIPPED_NAMES = re.compile(
    r"(genindex|search|searchindex|py-modindex|sitemap|-members|package-tree|package-use|class-use|overview-tree"
    r"|changelog|copyright|index-all|allclasses|constant-values|deprecated-list|print|fonts|LICENSE)", re.IGNORECASE)
OTHER_LANGUAGE = re.compile(
    r"(/|\.)(ar|cs|da|de|el|es|fa|fr|hr|hu|id|it|ja|ko|nb|nb-NO|nl|pl|pt|pt-BR|ro|ru|sv|tr|uk|vi|zh|zh-CN|zh-TW)"
    r"(-[A-Z]{2})?(/|\.(html|iso|utf|euc|koi))")
DROPPED = re.compile(r"<(script|style|head|nav|footer|header|svg|noscript)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
BREAKS = re.compile(r"</?(p|div|li|ul|ol|tr|table|h\d|pre|br|dt|dd|dl|section|blockquote|hr)\b[^>]*>", re.IGNORECASE)
TAG = re.compile(r"<[^>]*>")
MACRO = re.compile(r"^[.'](SH|SS|TP|PP|P|LP|IP|HP|RS|RE|nf|fi|br|sp|TH|ad|hy|na|in|ft|ie|el|if|de|ds|so|\\\").*$")
FONT = re.compile(r"\\f[BIRP]|\\f\(..|\\&|\\/|\\,|\\\||\\c")


def strip_html(text):
    text = DROPPED.sub(" ", text)
    text = BREAKS.sub("\n", text)
    return html.unescape(TAG.sub("", text))


def strip_manual(text):
    lines = []
    for line in text.splitlines():
        if line.startswith((".SH", ".SS")):
            line = line[4:].strip().strip('"')
        elif MACRO.match(line):
            continue
        elif line.startswith("."):
            line = " ".join(line.split(" ")[1:])
        lines.append(FONT.sub("", line).replace("\\-", "-").replace("\\(aq", "'").replace('"', ""))
    return "\n".join(lines)


def keep_docstrings(text):
    """The docstrings of a Python source, each once, in their order; nothing of a source that does not parse."""
    try:
        nodes = ast.walk(ast.parse(text))
    except (SyntaxError, ValueError):
        return ""
    found = (ast.get_docstring(node) for node in nodes
             if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)))
    text = "\n\n".join(dict.fromkeys(doc for doc in found if doc and len(doc) > 80))
    return text.encode("utf-8", "ignore").decode()  # half a surrogate pair is no text


def pages_of(package, docstrings):
    """Source pages where a package has them, else the pages made from them; with docstrings also Python sources."""
    files = sorted(p for p in package.rglob("*") if p.is_file() and not p.is_symlink())
    sources = [p for p in files if "_sources" in p.parts]
    if sources:
        return sources
    kinds = (".html", ".htm", ".txt", ".rst", ".pod", ".adoc", ".md") + ((".py",) if docstrings else ())
    chosen = [p for p in files if p.name.removesuffix(".gz").endswith(kinds)
              or re.search(r"\.[1-9][a-z]*(\.gz)?$", p.name)]
    return [p for p in chosen if not SKIPPED_NAMES.search(p.name) and not OTHER_LANGUAGE.search(str(p))]


def read_page(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode("utf-8", "ignore")
    name = path.name.removesuffix(".gz")
    if re.search(r"\.[1-9][a-z]*$", name):
        text = strip_manual(text)
    elif "<html" in text[:2000].lower() or name.endswith((".html", ".htm")):
        text = strip_html(text)
    elif name.endswith(".py"):
        text = keep_docstrings(text)
    lines = [line.rstrip() for line in text.replace("\0", "").splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=pathlib.Path, help="folders that packages were unpacked into")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--most", type=float, default=1e9, help="MB of text taken from one package, at most")
    parser.add_argument("--shortest", type=int, default=400, help="characters of a page that is worth keeping")
    parser.add_argument("--docstrings", action="store_true", help="take the docstrings of Python sources too")
    args = parser.parse_args()
    seen = set()
    for package in args.packages:
        repeated, total, count = collections.Counter(), 0, 0
        for page in pages_of(package, args.docstrings):
            kept = []
            for line in read_page(page).splitlines():
                key = hash(line.strip())
                repeated[key] += 1
                if len(line) < 4 or repeated[key] <= 3:  # the first few times; short lines hold code together
                    kept.append(line)
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
            digest = hashlib.sha256(text.encode()).digest()
            if len(text) < args.shortest or digest in seen:
                continue
            seen.add(digest)
            name = re.sub(r"[^A-Za-z0-9.]+", "-", str(page.relative_to(package)).replace("usr/share/", ""))[-150:]
            target = args.out / package.name / f"{count:06d}-{name}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text + "\n", encoding="utf-8")
            total += len(text)
            count += 1
            if total > args.most * 1e6:
                break
        print(f"{package.name}: {count} pages, {total / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
