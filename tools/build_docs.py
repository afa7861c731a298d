"""Build the documentation site with pandoc, for machines where Quarto cannot be installed, and README.md.

The same `_quarto.yml` and notebooks make the site with Quarto (`nbdev-docs`). Here nbdev does what it does before
Quarto (directives, links between symbols, definitions), pandoc does the rest. Notebooks are not executed: figures and
numbers are the outputs they were saved with.
"""

import argparse
import base64
import hashlib
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
HERE = Path(__file__).resolve().parent

KINDS = {"fig": "Figure", "tbl": "Table", "eq": "Equation", "sec": "Section"}
CODE = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2`*~* *$|(?<!`)(`+)(?!`).+?(?<!`)\3(?!`))", re.S | re.M)
REFERENCE = re.compile(r"(?<![\w@\[])@((?:fig|tbl|eq|sec)-[\w-]+)")
EQUATION = re.compile(r"\$\$(.+?)\$\$\s*\{#(eq-[\w-]+)\}", re.S)
HEADING = re.compile(r"^(#+ +)(.+?) *\{#(sec-[\w-]+)\} *$", re.M)
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)\{#(fig-[\w-]+)")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def text_of(source):
    "A notebook's text field as one string: it may be a list of lines."
    return "".join(source) if isinstance(source, list) else source or ""


def outside_code(change, markdown):
    "`markdown` with `change` applied to everything but its code blocks and code spans."
    parts, end = [], 0
    for found in CODE.finditer(markdown):
        parts += [change(markdown[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*parts, change(markdown[end:])])


def read_config():
    "What Quarto would read: `_quarto.yml` and the files it names."
    config = yaml.safe_load((NBS / "_quarto.yml").read_text(encoding="utf-8"))
    for name in config.get("metadata-files", []):
        merge(config, yaml.safe_load((NBS / name).read_text(encoding="utf-8")) or {})
    return config


def merge(into, new):
    "Put the nested dictionary `new` into `into`."
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


# --- what nbdev does: definitions, links, directives ---------------------------------------------------------------


DOTTED = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])")  # `collections.abc.` of `collections.abc.Iterable`


def definition(symbol, name=None, title_level=3):
    "Markdown for an exported name: its signature, what it does, its parameters and, for a class, its methods."
    from fastcore.docments import DocmentTbl, MarkdownRenderer

    plain = MarkdownRenderer(symbol, name=name)
    parts = [f"{'#' * title_level} {plain.nm}", f"```python\n{signature(symbol, str(plain.dm))}\n```", plain.docs]
    try:
        rows = [row.split(" | ", 2) for row in str(DocmentTbl(symbol)).splitlines()]
        parts.append(
            "\n".join(" | ".join([*row[:1], *(DOTTED.sub("", r) for r in row[1:2]), *row[2:]]) for row in rows)
        )
    except (TypeError, ValueError):
        pass
    if isinstance(symbol, type):
        parts.append(methods(symbol))
    box = ["```{=html}\n<div class='definition'>\n```", *filter(None, parts), "```{=html}\n</div>\n```"]
    return "\n\n".join(box)  # raw: pandoc would give a div of its own the heading's identifier


def signature(symbol, text):
    "nbdev's signature of `symbol` without its comments, in one line if it fits."
    bare = DOTTED.sub("", re.sub(r"\s+# .*", "", text).rstrip(":"))
    if isinstance(symbol, type):
        bare = bare.replace("def ", "class ", 1).removesuffix("->None")
        bare = re.sub(r"\(\s*\*args\b[^()]*\*\*\w+[^()]*\)$", "", bare)
    flat = re.sub(r",?\s*\)(?=->|$)", ")", re.sub(r"\(\s+", "(", re.sub(r"\n\s*", " ", bare)))
    return flat if len(flat) < 76 else bare


def methods(cls):
    "A table of the methods and properties that `cls` itself documents, each with an anchor that links can use."
    rows = []
    for name, value in vars(cls).items():
        value = getattr(value, "__func__", value)
        line = (value.__doc__ or "").strip().partition("\n")[0]
        if (inspect.isfunction(value) or isinstance(value, property)) and line and not name.startswith("_"):
            anchor = f"{cls.__name__}.{name}".lower()
            rows.append(f"| [{name}]{{#{anchor}}} | {line.replace('|', chr(92) + '|')} |")
    return "\n".join(["| **Method** | |", "|---|---|", *rows]) if rows else ""


def packaged(symbol, module):
    "The same definition as the package has it: only there do the comments of a class have a source."
    try:
        return attrgetter(symbol.__qualname__)(import_module(module))
    except (AttributeError, ImportError, TypeError):
        return symbol


def processors(module):
    "nbdev's processors for documentation, with our definitions and with the source kept, folded, under each."
    import nbdev.showdoc
    from nbdev.processors import FilterDefaults

    class Shown:
        def __init__(self, symbol, name=None, title_level=3):
            self.markdown = definition(packaged(symbol, module), name=name, title_level=title_level)

        def _repr_markdown_(self):
            return self.markdown

    nbdev.showdoc.BasicMarkdownRenderer = Shown

    class WithSource(FilterDefaults):
        def base_procs(self):
            named = {p.__name__: p for p in super().base_procs()}
            named["rm_export"] = fold_sources()
            for name in ("add_fold", "mv_exports"):
                del named[name]
            return list(named.values())

    return WithSource()


def fold_sources():
    "The processor that puts an exported cell, folded, behind the definitions it makes, and drops hidden cells."
    from nbdev.process import Processor

    class FoldSources(Processor):
        def begin(self):
            cells, done = self.nb.cells, []
            while cells:
                cell = cells.pop(0)
                shown = []
                while cells and getattr(cells[0], "has_sd", False):
                    shown.insert(0, cells.pop(0))
                done += [*shown, cell]
            cells.extend(done)

        def cell(self, cell):
            if cell.cell_type != "code":
                return
            directives = cell.directives_.keys()
            if directives & {"hide", "default_exp"} or only_imports(cell):
                del cell["source"]
            elif directives & {"export", "exports", "exporti"} and re.search(r"^(class|def|@)", cell.source, re.M):
                names = re.findall(r"^(?:async +)?(?:class|def) +(\w+)", cell.source, re.M)
                summary = f"#| code-summary: Source of {', '.join(names)}"
                cell.source = f"#| code-fold: true\n{summary}\n{cell.source}"

    return FoldSources


def only_imports(cell):
    "True for an exported cell of imports: nothing to read for somebody who calls the function."
    import ast

    return "export" in cell.directives_ and all(
        isinstance(s, ast.Import | ast.ImportFrom) for s in cell.parsed_() or [None]
    )


def module_of(notebook):
    "The module that a notebook is exported to."
    named = re.search(r"^#\| *default_exp +(\S+)", "\n".join(c.source for c in notebook.cells), re.M)
    return f"robustlit.{named[1]}" if named else "robustlit"


def process(path):
    "The cells of the notebook at `path`, as nbdev hands them to Quarto."
    from fastcore.nbio import nb2dict, read_nb

    os.environ["IN_TEST"] = "1"
    os.chdir(ROOT)
    notebook, main_module = read_nb(path), sys.modules["__main__"]
    try:
        processors(module_of(notebook))(notebook)
    finally:
        sys.modules["__main__"] = main_module  # nbdev's shell puts itself there, and the pool would not find this file
    return json.loads(json.dumps(nb2dict(notebook), default=str))["cells"]


# --- from cells to markdown ---------------------------------------------------------------------------------------


@dataclass
class Page:
    "One notebook on its way to one HTML page."

    path: str  # The notebook, seen from `nbs`
    cells: list
    section: str = ""
    out: Path = Path("_docs")
    labels: dict = field(default_factory=dict)  # Of what can be referred to: label -> "Figure 1"
    pictures: int = 0

    def __post_init__(self):
        front = text_of(self.cells[0]["source"]).strip() if self.cells else ""
        self.meta = yaml.safe_load(front.strip("- \n")) if front.startswith("---") else {}
        self.title = self.meta.get("title", Path(self.path).stem)
        name = self.meta.get("output-file", Path(self.path).with_suffix(".html").name)
        self.href = (Path(self.path).parent / name).as_posix()
        self.base = "../" * self.href.count("/")

    def number(self, label):
        "Give `label` the next number of its kind on this page."
        if label in self.labels:
            raise SystemExit(f"{self.path}: the label {label} is used twice")
        kind = KINDS[label.split("-")[0]]
        self.labels[label] = f"{kind} {1 + sum(v.startswith(kind) for v in self.labels.values())}"
        return self.labels[label]

    def markdown(self):
        "The page's text for pandoc."
        parts = [self.cell(c) for c in self.cells if c["cell_type"] != "raw"]
        return outside_code(self.numbered, "\n\n".join(filter(None, parts)))

    def numbered(self, text):
        "`text` with its labelled equations, headings and pictures numbered."
        text = EQUATION.sub(lambda m: f"::: {{#{m[2]} .equation}}\n$${m[1]}$$ ({self.number(m[2])[9:]})\n:::", text)
        text = PICTURE.sub(lambda m: f"![{self.number(m[3])}: {m[1]}]({m[2]}){{#{m[3]}", text)
        for m in HEADING.finditer(text):
            self.labels[m[3]] = f"“{m[2]}”"
        return text

    def cell(self, cell):
        "One cell as markdown."
        source = text_of(cell["source"])
        if cell["cell_type"] == "markdown":
            return source
        options, code = split_options(source)
        if options.get("include") is False or not source.strip():
            return ""
        parts = []
        if options.get("echo", True) and code:
            block = fenced(code, ".python .cell-code")
            fold = options.get("code-fold")
            if fold:
                summary = html.escape(options.get("code-summary", "Code"))
                block = f"<details{' open' * (fold == 'show')}><summary>{summary}</summary>\n\n{block}\n\n</details>"
            parts.append(block)
        if options.get("output", True):
            parts += [self.output(o, options) for o in cell.get("outputs", [])]
        body = "\n\n".join(filter(None, parts))
        return body if options.get("output") == "asis" or not body else f":::: {{.cell}}\n{body}\n::::"

    def output(self, output, options):
        "One output of a cell as markdown."
        kind = output["output_type"]
        if kind == "stream":
            return boxed(fenced(plain_text(output["text"])), output["name"]) if text_of(output["text"]).strip() else ""
        if kind == "error":
            return boxed(fenced(plain_text("\n".join(output["traceback"]))), "error")
        data = output.get("data", {})
        body = self.display(data, options)
        label = options.get("label", "")
        if not body or options.get("output") == "asis":
            return body
        if label.split("-")[0] not in ("fig", "tbl") or label in self.labels:
            return boxed(body, "display")
        caption = f"{self.number(label)}: {options.get('fig-cap') or options.get('tbl-cap') or ''}"
        return f"::: {{#{label}}}\n{boxed(body, 'display')}\n\n[{caption}]{{.caption}}\n:::"

    def display(self, data, options):
        "The richest form of an output that a page can show."
        for mime, ending in (("image/svg+xml", "svg"), ("image/png", "png"), ("image/jpeg", "jpg")):
            if mime in data:
                alt = options.get("fig-alt") or options.get("fig-cap") or "Output of the cell above"
                address = self.picture(text_of(data[mime]), ending)
                return f'```{{=html}}\n<img src="{address}" alt="{html.escape(alt)}">\n```'
        if "application/vnd.jupyter.widget-view+json" in data:
            return ""
        if "text/html" in data:
            return f"```{{=html}}\n{text_of(data['text/html'])}\n```"
        if "text/markdown" in data:
            return text_of(data["text/markdown"])
        if "text/latex" in data:
            return text_of(data["text/latex"])
        return fenced(plain_text(data["text/plain"])) if "text/plain" in data else ""

    def picture(self, content, ending):
        "Write an image next to the page and return its address."
        self.pictures += 1
        target = self.out / Path(self.href).with_suffix("") / f"{self.pictures}.{ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if ending == "svg" else base64.b64decode(content))
        return f"{target.parent.name}/{target.name}"


def split_options(code):
    "The `#|` options of a cell as a dictionary, and the rest of its code."
    lines = code.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    pairs = (line[2:].partition(":") for line in lines[:n])
    options = {key.strip(): yaml.safe_load(value) for key, colon, value in pairs if colon}
    return options, "\n".join(lines[n:]).strip("\n")


def fenced(text, classes=""):
    "`text` as a code block that no backtick in it can end."
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {{{classes}}}\n{text}\n{ticks}" if classes else f"{ticks}\n{text}\n{ticks}"


def boxed(body, kind):
    return f"::: {{.cell-output .cell-output-{kind}}}\n{body}\n:::"


def plain_text(text):
    "Terminal output as it looked at the end: no colours, of a rewritten line only its last state."
    lines = ANSI.sub("", text_of(text)).rstrip().split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


# --- from markdown to pages ---------------------------------------------------------------------------------------


def render(page, pages, config, pandoc):
    "Write the HTML page of `page` and return its headings as (title, text, address) for the search."
    labels = {label: (other, text) for other in pages for label, text in other.labels.items()}

    def link(found):
        if found[1] not in labels:
            raise SystemExit(f"{page.path}: nothing is labelled {found[1]}")
        other, text = labels[found[1]]
        return f"[{text}]({'' if other is page else page.base + other.href}#{found[1]})"

    order = pages.index(page)
    values = {
        "base": page.base,
        "site": config["website"]["title"],
        "tagline": config["website"].get("description", ""),
        "section": page.section if page.base else "",
        "title": page.title,
        "description": page.meta.get("description", ""),
        "home": page.href == "index.html",
        "pages": navigation(page, pages),
        "notebook": Path(page.path).name,
    }
    for key, i in (("previous", order - 1), ("next", order + 1)):
        if 0 <= i < len(pages):
            values |= {key: pages[i].title, f"{key}_href": page.base + pages[i].href}
    text = outside_code(lambda part: REFERENCE.sub(link, part), page.text)
    if not re.search(r"^#+ +References", text, re.M):
        text += "\n\n## References\n" * cites(text, config)
    command = [
        pandoc,
        "--from=markdown-smart+autolink_bare_uris-blank_before_header",
        "--to=html5",
        "--mathml",
        "--toc",
    ]
    command += ["--toc-depth=3", f"--template={HERE / 'page.html'}", "--columns=1000", "--citeproc"]
    command += [f"--bibliography={NBS / config['bibliography']}", "--metadata=link-citations", "--metadata=pagetitle:-"]
    for key, value in values.items():
        shown = value if key == "pages" else html.escape(str(value))
        command += [f"--variable={key}:{shown}"] if value else []
    made = subprocess.run(command, input=text, text=True, capture_output=True, encoding="utf-8")
    if made.returncode or made.stderr.strip():
        raise SystemExit(f"{page.path}: {made.stderr.strip()}")
    body = relative_links(made.stdout, page, pages, config)
    target = page.out / page.href
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(body, encoding="utf-8")
    main = body.partition("<main")[2].partition('<nav class="neighbours"')[0]
    heads = re.findall(r'<h[234][^>]*\bid="([^"]+)"[^>]*>(.*?)</h', main, re.S)
    found = [[page.title, html.unescape(re.sub("<[^>]+>", "", t)).strip(), f"{page.href}#{i}"] for i, t in heads]
    return [[page.section or config["website"]["title"], page.title, page.href], *found]


def cites(text, config):
    "True if `text` cites an entry of the bibliography."
    keys = re.findall(r"^@\w+\{([^,\s]+),", (NBS / config["bibliography"]).read_text(encoding="utf-8"), re.M)
    return bool(set(re.findall(r"@([\w:-]+)", text)) & set(keys))


def relative_links(text, page, pages, config):
    "`text` with links to notebooks and to the published site made relative to this page."
    site = config["website"].get("site-url", "").rstrip("/") + "/"
    hrefs = {p.path: p.href for p in pages}

    def fix(found):
        url, download = html.unescape(found[1]), found[2]
        if download:
            return found[0]
        if url.startswith(site):
            url = page.base + url.removeprefix(site)
        path, sharp, anchor = url.partition("#")
        notebook = os.path.normpath(Path(page.path).parent / path)
        if path.endswith(".ipynb") and notebook in hrefs:
            url = page.base + hrefs[notebook] + sharp + anchor
        return f'href="{html.escape(url)}"'

    return re.sub(r'href="([^"]*)"( download)?', fix, text)


def navigation(page, pages):
    "The list of pages, by section."
    parts, section = [], None
    for other in pages:
        if other.section != section:
            parts.append(f"{'</ul>' * (section is not None)}<p>{html.escape(other.section)}</p><ul>")
            section = other.section
        here = ' class="here" aria-current="page"' * (other is page)
        parts.append(f'<li><a{here} href="{page.base}{other.href}">{html.escape(other.title)}</a></li>')
    return "\n".join([*parts, "</ul>"])


def listed(contents, section=""):
    "The (section, notebook) pairs of a sidebar."
    for entry in contents:
        if isinstance(entry, dict) and "contents" in entry:
            yield from listed(entry["contents"], entry["section"])
        else:
            yield section, entry if isinstance(entry, str) else entry["href"]


def build(out):
    "Write the whole site to the folder `out`."
    import pypandoc
    from nbdev.quarto import refresh_quarto_yml

    os.chdir(ROOT)
    refresh_quarto_yml()
    config, pandoc = read_config(), pypandoc.get_pandoc_path()
    entries = list(listed(config["website"]["sidebar"]["contents"]))
    absent = [path for _, path in entries if not (NBS / path).is_file()]
    if absent:
        raise SystemExit(f"nbs/sidebar.yml lists notebooks that do not exist: {', '.join(absent)}")
    with ProcessPoolExecutor(max_workers=min(os.cpu_count() or 1, 4)) as pool:
        cells = list(pool.map(process, [NBS / path for _, path in entries]))
    shutil.rmtree(out, ignore_errors=True)
    pages = [Page(path, c, section, out) for (section, path), c in zip(entries, cells)]
    for page in pages:
        page.text = page.markdown()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        heads = list(pool.map(lambda page: render(page, pages, config, pandoc), pages))
    for page in pages:
        shutil.copy2(NBS / page.path, out / page.path)
    (out / "site").mkdir()
    shutil.copy2(NBS / config["format"]["html"]["css"], out)
    for name in ("page.css", "page.js"):
        shutil.copy2(HERE / name, out / "site")
    index = json.dumps([h for page in heads for h in page], ensure_ascii=False, separators=(",", ":"))
    (out / "site" / "search.js").write_text(f"window.searchIndex={index}", encoding="utf-8")
    print(f"Quarto is not installed: {len(pages)} pages made by pandoc in {out}")


# --- README.md ----------------------------------------------------------------------------------------------------


def readme():
    "The text of README.md: the index notebook with its saved outputs, links leading into the repository."
    notebook = json.loads((NBS / "index.ipynb").read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        options, code = split_options(text_of(cell["source"]))
        if cell["cell_type"] == "markdown":
            parts.append(code)
        if cell["cell_type"] != "code" or re.search(r"^#\| *hide\b", text_of(cell["source"]), re.M):
            continue
        if options.get("echo", True) and code:
            parts.append(f"```python\n{code}\n```")
        parts += [readme_output(o) for o in cell["outputs"] if o.get("name") != "stderr"]  # progress bars
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    return outside_code(lambda part: re.sub(r"\]\((?!\w+:|#)([^)]+)\)", r"](nbs/\1)", part), text) + "\n"


def readme_output(output):
    "One output of the index notebook as GitHub's markdown."
    data = output.get("data", {})
    if "text/markdown" in data:
        return text_of(data["text/markdown"])
    if "image/jpeg" in data:
        name = f"figure-{hashlib.sha256(text_of(data['image/jpeg']).encode()).hexdigest()[:8]}.jpg"
        (NBS / name).write_bytes(base64.b64decode(text_of(data["image/jpeg"])))
        return f"![The figure that the cell draws]({name})"
    text = output.get("text") or data.get("text/plain")
    if text is None or any(mime.startswith("image/") for mime in data):
        raise SystemExit(f"nbs/index.ipynb: README.md cannot show an output of {', '.join(data) or 'this kind'}")
    return fenced(plain_text(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="folder of the site")
    parser.add_argument("--readme", type=Path, help="write only this file, from nbs/index.ipynb")
    args = parser.parse_args()
    if args.readme:
        args.readme.write_text(readme(), encoding="utf-8")
    else:
        build(args.out)


if __name__ == "__main__":
    sys.exit(main())
