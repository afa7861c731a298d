"Rules of the repository that no tool checks by itself."

import ast
import configparser
import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from fastcore.docments import docments
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import robustlit
from robustlit.claims import known_claims, ledger, ledger_markdown, verdict
from robustlit.sweeps import open_notebook, parse_grid, parse_value, plan

ROOT = Path(__file__).parent.parent
NBS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(robustlit.__path__, "robustlit.") if not m.name.endswith("_modidx")
)
PAPERS = {p.name for p in (ROOT / "robustlit").iterdir() if p.is_dir() and (p / "__init__.py").exists()}

parser = configparser.ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def repository_files():
    "Everything that is, or could be, committed."
    listing = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "-z"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if found.returncode == 0:
        return [p for p in (ROOT / name for name in found.stdout.split("\0") if name) if p.is_file()]
    ignored = {
        ".git",
        ".venv",
        "_docs",
        "_proc",
        "build",
        "dist",
        "runs",
        "__pycache__",
        ".ruff_cache",
        ".pytest_cache",
    }
    return [p for p in ROOT.rglob("*") if p.is_file() and not ignored & set(p.relative_to(ROOT).parts)]


FILES = repository_files()


def name_of(path):
    return path.relative_to(ROOT).as_posix()


# Versions and requirements


def test_one_version():
    assert settings["version"] == robustlit.__version__


@pytest.mark.parametrize("key", ["nbs_path", "doc_path", "tst_flags"])
def test_settings_agree(key):
    assert settings[key] == project["tool"]["nbdev"][key]


def locked():
    "The lock as name -> {version: names of what asked for it}."
    pins, name, version = {}, None, None
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if pinned := re.match(r"([\w.-]+)==([^\s;]+)", line):
            name, version = canonicalize_name(pinned[1]), pinned[2]
            pins.setdefault(name, {})[version] = []
        elif asked := re.match(r"\s+#\s+(?:via\s+)?([\w.-]+)", line):
            pins[name][version].append(asked[1])
    return pins


REQUIREMENTS = [key for key in settings if key.endswith("requirements")]
USED = [key for key in REQUIREMENTS if not key.startswith("dev")]


def required():
    return [Requirement(r) for key in REQUIREMENTS for r in settings[key].split()]


@pytest.mark.parametrize("requirement", required(), ids=lambda r: r.name)
def test_lock_satisfies(requirement):
    pins = locked().get(canonicalize_name(requirement.name))
    assert pins, f"not in requirements.lock: {requirement}"
    wrong = [v for v in pins if not requirement.specifier.contains(Version(v), prereleases=True)]
    assert not wrong, f"requirements.lock has {wrong}, settings.ini wants {requirement}"


def test_lock_is_of_these_requirements():
    asked = {name for name, pins in locked().items() for by in pins.values() if "robustlit" in by}
    assert asked == {canonicalize_name(r.name) for r in required()}, "make the lock again: its first lines say how"


def test_lock_names_no_address():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?:|--(extra-)?index-url|--find-links| @ ", text)


def test_package_imports_only_what_it_requires():
    known = packages_distributions()
    wanted = {canonicalize_name(Requirement(r).name) for key in USED for r in settings[key].split()}
    for path in (ROOT / "robustlit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {n.partition(".")[0] for n in names}:
                if top in known and top != "robustlit":
                    made_by = {canonicalize_name(d) for d in known[top]}
                    assert made_by & wanted, f"{name_of(path)} imports {top}: not among requirements in settings.ini"


# Notebooks


def source(cell):
    return "".join(cell["source"])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(cell):
    "A cell's Python, without the lines that are IPython's."
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in source(cell).splitlines())


def test_sidebar_lists_every_notebook():
    def listed(contents):
        for entry in contents:
            if isinstance(entry, dict) and "contents" in entry:
                yield from listed(entry["contents"])
            else:
                yield entry if isinstance(entry, str) else entry["href"]

    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text(encoding="utf-8"))
    shown = list(listed(sidebar["website"]["sidebar"]["contents"]))
    assert sorted(shown) == [p.relative_to(ROOT / "nbs").as_posix() for p in NBS]


@pytest.mark.parametrize("path", NBS, ids=name_of)
def test_notebook_head(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    python3 = {"display_name": "python3", "language": "python", "name": "python3"}
    assert notebook["metadata"]["kernelspec"] == python3, "papermill needs it"
    first = source(notebook["cells"][0]).strip()
    assert re.fullmatch(r"# .+\n\n> .+", first), f"nbdev drops anything but a title and one line from: {first!r}"
    assert path.stat().st_size < 600_000, "fewer or smaller figures"


def for_types_only(statement):
    asked = isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
    return asked and all(isinstance(s, ast.Import | ast.ImportFrom) for s in statement.body)


@pytest.mark.parametrize("path", NBS, ids=name_of)
def test_notebook_cells(path):
    cells = [c for c in read(path) if c["cell_type"] == "code"]
    for cell in cells:
        tree = ast.parse(code(cell)).body
        imports = [isinstance(s, ast.Import | ast.ImportFrom) or for_types_only(s) for s in tree]
        assert all(imports) or not any(imports), f"imports need a cell of their own:\n{source(cell)}"
        assert "nbdev_export()" not in source(cell), "a sweep would rewrite the package"
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"stored with an error:\n{source(cell)}"
            assert "image/png" not in output.get("data", {}), f"figures are JPEG (house_style):\n{source(cell)}"
            stream = "".join(output.get("text", ""))
            assert "%|" not in stream, f"a progress bar is stored (save with TQDM_DISABLE=1):\n{source(cell)}"


@pytest.mark.parametrize("path", NBS, ids=name_of)
def test_notebook_parameters(path):
    tagged = [c for c in read(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) <= 1
    for cell in tagged:
        lines = [line for line in source(cell).splitlines() if line.strip() and not line.startswith("#")]
        wrong = [line for line in lines if not re.fullmatch(r"\w+(: *[\w\[\]., |]+)? = [^;]+", line)]
        assert not wrong, f"papermill reads one assignment a line, not: {wrong}"


@pytest.mark.parametrize("path", NBS, ids=name_of)
def test_notebook_makes_the_module_of_its_name(path):
    folder, stem = path.parent.name, re.sub(r"^\d+_", "", path.stem)
    paper = (ROOT / "robustlit" / folder).is_dir()  # a paper's modules lie in its package, those of a room flat
    made = [m[1] for c in read(path) if (m := re.match(r"#\| *default_exp +(\S+)", source(c)))]
    assert made in ([], [f"{folder}.{stem}" if paper else stem])


def test_titles_are_unique():
    titles = [source(read(p)[0]).partition("\n")[0] for p in NBS]
    assert len(set(titles)) == len(titles), sorted(titles)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    spec = importlib.util.find_spec(module)
    package = module if spec.submodule_search_locations else spec.parent
    own = module.split(".")[1]
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and own != "benchmark":
            target = importlib.util.resolve_name("." * node.level + (node.module or ""), package).split(".")
            paper = PAPERS & set(target[1:2]) if target[0] == "robustlit" else set()
            assert paper <= {own}, f"{module} imports {'.'.join(target)}"


# What is exported is documented where it is written


def exported():
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute in getattr(module, "__all__", []):
            thing = getattr(module, attribute)
            if getattr(thing, "__module__", None) == name and not attribute.startswith("_"):
                yield pytest.param(thing, id=f"{name.removeprefix('robustlit.')}.{attribute}")


def undocumented(function):
    "Parameters of `function` without a comment."
    found = docments(function, full=True, returns=False, args_kwargs=True)
    return [k for k, v in found.items() if k not in ("self", "cls") and not v.docment]


@pytest.mark.parametrize("thing", list(exported()))
def test_exported_names_are_documented(thing):
    thing = inspect.unwrap(thing)
    if inspect.isfunction(thing):
        assert inspect.getdoc(thing), "no docstring"
        assert not undocumented(thing), "parameters without a comment"
    if not inspect.isclass(thing):
        return
    assert vars(thing).get("__doc__"), "no docstring"
    if dataclasses.is_dataclass(thing) or "__init__" in vars(thing):
        assert not undocumented(thing), "parameters without a comment"
    for name, method in vars(thing).items():
        method = getattr(method, "__func__", method)
        if inspect.isfunction(method) and not name.startswith(("_", "before_", "after_")):  # a callback's moments
            assert inspect.getdoc(getattr(thing, name)) or method.__doc__, f"{name} has no docstring"


# Files


MACHINE = re.compile(r"(?<![\w.~$}/-])/(?:work|root|home|tmp)(?![\w.-])")


def test_no_machine_paths():
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = [line.strip()[:120] for line in text.splitlines() if MACHINE.search(line)]
        assert not found or path == Path(__file__), f"{name_of(path)} names a place on one machine: {found[0]}"


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".parquet"], ids=name_of)
def test_no_machine_paths_in_tables(path):
    text = json.dumps(pyarrow.parquet.read_table(path).to_pylist(), default=str)
    text += str(pyarrow.parquet.read_schema(path).metadata)
    assert not MACHINE.search(text), MACHINE.search(text)


def test_readme_links_lead_somewhere():
    text = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S | re.M)
    links = re.findall(r"\]\((?!\w+:)([^)#]+)", text)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_readme_shows_the_verdicts_of_the_committed_records(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    claims = ledger()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(claims)
    for columns in (["claim", "statement", "published", "ours", "verdict"], ["claim", "command"]):
        shown = ledger_markdown(claims[columns])
        assert shown in text, "pack the records, run nbs/index.ipynb and make readme; expected:\n" + shown
    refuted = claims["verdict"].str.contains("fails|artefact|not indicated")
    assert refuted.any() and not [c for c in claims[refuted & (claims["second route"] == "")]["claim"]]


@pytest.mark.parametrize("c", [pytest.param(c, id=f"{c.paper} {c.id}") for c in known_claims()])
def test_the_command_of_a_claim_gives_the_n_that_its_table_shows(c, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    v = verdict(c)
    seeds = int(re.search(r"-g seed 0:(\d+)$", v.command)[1])
    assert seeds == (v.n or c.min_seeds)
    if v.ours and v.finding.per_seed:
        assert v.ours.endswith(f"(n = {seeds})")


TYPED = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?= ?(?:%|percent\b|points?\b))")
STORIES = [ROOT / "nbs/index.ipynb", *sorted((ROOT / "nbs").glob("*/00_paper.ipynb"))]
GIVEN = {
    "filtering": {"95": "confidence of intervals"},
    "metaplasticity": {
        "0": "of the report's logs",
        "10": "of the report's logs",
        "50": "of the report's logs",
        "90": "a level that is asked about",
    },
    "sleep": {"7.8": "the rule's own probability", "95": "confidence of intervals"},
}


def typed_results(text, given):
    "Numbers with % or points in prose, code and tables apart, that are none of those given."
    prose = re.sub(r"```.*?```|`[^`]*`|^\|.*$", "", text, flags=re.S | re.M)
    return [n for n in TYPED.findall(prose) if n.lstrip("+-") not in given]


def published_numbers(paper):
    "Numbers that the claims of a paper quote from it, as they are and rounded."
    texts = [str(c.published) for c in known_claims() if c.paper == paper]
    found = {n for text in texts for n in re.findall(r"\d+(?:\.\d+)?", text)}
    return found | {f"{float(n):.0f}" for n in found}


@pytest.mark.parametrize("path", STORIES, ids=lambda p: p.parent.name)
def test_results_in_prose_are_computed(path):
    paper = path.parent.name
    given = {*GIVEN.get(paper, {}), *published_numbers(paper)}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    found = {text[:60]: typed for text in prose if (typed := typed_results(text, given))}
    assert not found, f"results that were typed: compute them in a cell, {found}"
    unused = {n for n in GIVEN.get(paper, {}) if not any(n in TYPED.findall(text) for text in prose)}
    assert not unused, f"numbers excused that no prose has: {unused}"


@pytest.mark.parametrize(
    "text, found",
    [
        ("It keeps 95.1 % of the old tasks.", ["95.1"]),
        ("It gains +2.2 points, or 4.7 points.", ["+2.2", "4.7"]),
        ("Twelve of 672 checks, 10,000 images, batch norm of version 1.1 and 5 tasks.", []),
        ("The report says 69.5 %, rounded 70 %.", []),
        ("`x = 5 %` and\n| a table | 5 % |", []),
    ],
)
def test_typed_results_are_found(text, found):
    assert typed_results(text, {"69.5", "70"}) == found


# The two commands


@pytest.fixture
def shell_only(tmp_path):
    "A folder with what `make` reads, and a way to call it."
    for name in ("Makefile", "requirements.lock", "settings.ini", "pyproject.toml", "setup.py"):
        shutil.copy2(ROOT / name, tmp_path)

    def make(*args):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHON"))}
        return subprocess.run(["make", *args], cwd=tmp_path, env=clean, capture_output=True, text=True)

    return tmp_path, make


def test_old_python_is_refused(shell_only):
    folder, make = shell_only
    old = folder / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    made = make("demo", f"PYTHON={old}")
    assert made.returncode != 0 and "3.11 or newer" in made.stderr and "3.9.2" in made.stderr
    assert not (folder / ".venv").exists()


def test_environment_is_made_once(shell_only):
    folder, make = shell_only
    assert "uv pip install" in make("-n", "demo").stdout
    (folder / ".venv").mkdir()
    (folder / ".venv/.installed").touch()
    again = make("-n", "demo").stdout
    assert "robustlit run forgetting" in again and "pip install" not in again
    later = (folder / ".venv/.installed").stat().st_mtime + 5
    os.utime(folder / "requirements.lock", (later, later))
    assert "uv pip install" in make("-n", "demo").stdout


def test_ci_runs_the_same_steps():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").rstrip().splitlines()[-1].startswith("exec make test")


# What the next person reads


def guide():
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def make_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = re.search(r"^STEPS := (.+)$", text, re.M)[1].split()
    return steps, {*steps, *re.findall(r"^([a-z]+):", text, re.M)}


def test_contributing_names_targets_that_exist():
    steps, targets = make_targets()
    named = re.findall(r"^make ([a-z]+)", guide(), re.M) + re.findall(r"`make ([a-z]+)`", guide())
    assert {"demo", "lab", "prepare", "test"} <= set(named) <= targets
    assert re.findall(r"^\| `([a-z]+)` \|", guide(), re.M) == steps, "the table of gates is another than STEPS"


def test_contributing_names_files_that_exist():
    prose = re.sub(r"^```.*?^```", "", guide(), flags=re.S | re.M)
    words = {w for quoted in re.findall(r"`([^`]+)`", prose) for w in quoted.split() if re.search(r"/|\.[a-z]+$", w)}
    words |= set(re.findall(r"\]\((?!\w+:)([^)#]+)", prose))
    made = {".venv", ".venv/bin/python", ".venv/bin/nbdev-test", "NN_name.ipynb", "nbs/<paper>", "torch.nn.Module"}
    assert "nbs/sidebar.yml" in words and not [w for w in words - made if not (ROOT / w).exists()]


def test_contributing_names_commands_that_exist():
    module, main = project["project"]["scripts"]["robustlit"].split(":")
    start = f"import sys; from {module} import {main}; sys.argv[1:] = ['--help']; {main}()"
    shown = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    named = set(re.findall(r"^robustlit (\w+)", guide(), re.M))
    assert named and named <= set(re.findall(r"^    (\w+) ", shown.stdout, re.M)), shown.stderr


def test_examples_of_contributing_run(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", guide(), re.S | re.M)
    (tmp_path / "examples.py").write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, "examples.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "heads" in done.stdout and "darker" in done.stdout and done.stdout.endswith("holds\n")


def test_citation_agrees():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == settings["version"] and cited["abstract"] == project["project"]["description"]
    assert cited["repository-code"] == project["project"]["urls"]["Repository"]
    assert cited["url"] == project["project"]["urls"]["Documentation"]
    assert cited["keywords"] == settings["keywords"].split() and cited["authors"] == project["project"]["authors"]
    assert f"version = {{{settings['version']}}}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_changelog_has_this_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert versions[0] == settings["version"] and versions == sorted(versions, key=Version, reverse=True)


def test_hooks_are_the_commands_of_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    recipe = re.search(r"^lint:.*\n\t@set -e; (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    assert entries == recipe.replace("$(BIN)", ".venv/bin").split("; ")


@pytest.mark.parametrize("name", ["test.yml", "docs.yml"])
def test_workflows_run_make_alone(name):
    flow = yaml.safe_load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"))
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    run = [re.fullmatch(r"make ([a-z]+) PYTHON=python", step["run"]) for step in steps if "run" in step]
    assert (
        all(run) and [m[1] for m in run] == [name.removesuffix(".yml")] and set(m[1] for m in run) <= make_targets()[1]
    )
    assert all(re.search(r"@v\d", step["uses"]) for step in steps if "uses" in step)
    assert True in flow and {"push"} <= set(flow[True])  # YAML reads `on` as true


def test_workflow_tries_the_oldest_and_the_newest_python():
    flow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    tried = flow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert f">={tried[0]}" == project["project"]["requires-python"] and tried == ["3.11", "3.13"]


def test_compiled_files_are_kept(shell_only):
    folder, _ = shell_only
    (folder / "Makefile").write_text((folder / "Makefile").read_text() + "\nkept:\n\t@env\n")
    dirty = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    shown = subprocess.run(["make", "-s", "kept"], cwd=folder, env=dirty, capture_output=True, text=True).stdout
    assert "PATH=" in shown and "PYTHONDONTWRITEBYTECODE" not in shown


def quoted_commands():
    "Every `robustlit run` and `robustlit sweep` that a page or README.md tells somebody to type, with its place."
    texts = {"README.md": [(ROOT / "README.md").read_text(encoding="utf-8")]}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        shown = [o.get("data", {}).get("text/markdown", "") for c in cells for o in c.get("outputs", [])]
        texts[str(path.relative_to(ROOT))] = [
            "".join(t) for t in [*(c["source"] for c in cells if c["cell_type"] == "markdown"), *shown]
        ]
    for place, parts in texts.items():
        if place != "nbs/add_experiment.ipynb":  # of a notebook that the reader writes: tests/test_add_experiment.py
            found = re.findall(r"(?:`|^)(robustlit (?:run|sweep) [^`\n]+)", "\n".join(parts), re.M)
            yield from ((place, command) for command in sorted(set(found)))


QUOTED = list(
    dict.fromkeys(command for place, command in quoted_commands() if not re.search(r" practice | my_", command))
)


def test_a_command_that_is_quoted_can_be_typed():
    assert len(QUOTED) > 40
    for command in QUOTED:
        words, asked = shlex.split(command, comments=True)[2:], dict(given={}, grid={}, profile=None)
        notebook, words = open_notebook(words[0]), words[1:]
        while words:
            option, *words = words
            if option in ("-p", "-g"):
                name, value, *words = words
                asked["given" if option == "-p" else "grid"][name] = (parse_value if option == "-p" else parse_grid)(
                    value
                )
            elif option == "--profile":
                asked["profile"], *words = words
            elif option in ("--jobs", "--threads"):
                words = words[1:]
        assert plan(notebook, **asked), command


def names_at_the_top(source):
    "Names that a cell gives a value, and those that its own lines use, functions apart."
    tree = ast.parse("".join(line for line in source.splitlines(True) if not line.startswith(("%", "!"))))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    made, used, todo = set(), set(), list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, functions):
            made |= {node.name} if hasattr(node, "name") else set()
            todo += getattr(node, "decorator_list", [])
            continue
        if isinstance(node, ast.Name):
            (made if isinstance(node.ctx, ast.Store) else used).add(node.id)
        todo += ast.iter_child_nodes(node)
    return made, used


@pytest.mark.parametrize("path", NBS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_sweep_does_not_meet_a_name_that_only_cells_of_records_give(path):
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    tags = [c["metadata"].get("tags", []) for c in cells]
    if not any("parameters" in t for t in tags):
        return
    found = [names_at_the_top("".join(c["source"])) for c in cells]
    always = set().union(*(made for (made, _), t in zip(found, tags) if "records" not in t))
    late = set().union(*(made for (made, _), t in zip(found, tags) if "records" in t)) - always
    assert not [used & late for (_, used), t in zip(found, tags) if "records" not in t and used & late]
