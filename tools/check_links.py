"""Check a built site: every link inside it leads to a file and an anchor that exist, and no identifier is used twice.

A function or class that two modules define has no address of its own: in the notebooks its name must be a link with a path, not a bare
name between backticks, which nbdev would link to either.
"""

import ast
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent


class Reader(HTMLParser):
    "Collects the identifiers and the addresses of one page."

    def __init__(self):
        super().__init__()
        self.ids, self.urls = [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "src") and value:
                self.urls.append(value)


def read(path):
    "The identifiers and addresses in the page at `path`."
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def faults(root):
    "The number of links inside the site in folder `root`, and a line for each thing wrong."
    root = root.resolve()
    pages = {path: read(path) for path in sorted(root.rglob("*.html"))}
    wrong, links = [], 0
    for path, page in pages.items():
        where = path.relative_to(root)
        wrong += [
            f"{where}: two elements are called {i}" for i in sorted({i for i in page.ids if page.ids.count(i) > 1})
        ]
        for url in page.urls:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.path.startswith("/") or root not in [target, *target.parents]:
                wrong.append(f"{where}: {url} leads out of the site")
            elif not target.is_file():
                wrong.append(f"{where}: {url} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                wrong.append(f"{where}: {url} has no such anchor")
    return len(pages), links, wrong


def shared_names(package):
    "Public functions and classes that more than one module below the folder `package` defines."
    found = Counter()
    for path in package.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = {s.name for s in body if isinstance(s, ast.FunctionDef | ast.ClassDef) and not s.name.startswith("_")}
        found.update(names)
    return {name for name, count in found.items() if count > 1}


def texts(cell):
    "What a cell of a notebook says in words: markdown, or the docstrings and comments of an exported cell."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return re.sub(r"^```.*?^```", "", source, flags=re.S | re.M)
    if not re.match(r"#\| *export", source):
        return ""
    docs = [
        ast.get_docstring(n) or "" for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]
    return "\n".join([*docs, *re.findall(r"#.*", source)])


def unclear(notebooks, package):
    "A line for each name between backticks in the notebooks that two modules define."
    shared, wrong = shared_names(package), []
    for path in sorted(p for p in notebooks.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            named = re.findall(r"(?<![`\[])`([\w.]+)(?:\([^`]*\))?`(?!\])", texts(cell))
            where = path.relative_to(notebooks)
            wrong += [f"{where}: `{n}` is in two modules; link it by its path" for n in named if n in shared]
    return wrong


def main():
    pages, links, wrong = faults(Path(sys.argv[1]))
    wrong += unclear(ROOT / "nbs", ROOT / "robustlit")
    print(f"{pages} pages, {links} links inside the site, {len(wrong)} faults")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return 1 if wrong or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
