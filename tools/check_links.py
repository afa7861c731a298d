"""Check a built site: every link inside it leads to a file and an anchor that exist, and no identifier is used twice."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


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


def main():
    pages, links, wrong = faults(Path(sys.argv[1]))
    print(f"{pages} pages, {links} links inside the site, {len(wrong)} faults")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return 1 if wrong or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
