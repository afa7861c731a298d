"""The front door and the command: what opens at once, and what is loaded only when it is needed."""

import ast
import configparser
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import robustlit
from robustlit.command import EXTRAS

HEAVY = ("torch", "numpy", "pandas", "scipy", "numba", "matplotlib", "pyarrow", "torchvision", "papermill")


def loaded_after(code):
    "Exit code, and which heavy packages a new process has loaded after this code."
    ask = f"import sys\ntry:\n    {code}\nexcept SystemExit as e:\n    print('exit', e.code)\n"
    ask += f"print('loaded', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("words, code", [("--version", 0), ("--help", 0), ("sweep --help", 0), ("swep", 2), ("run", 2)])
def test_help_and_refusals_load_nothing_heavy(words, code):
    out, err, heavy = loaded_after(f"from robustlit.command import main; main({words.split()})")
    assert heavy == [] and f"exit {code}" in out
    assert "usage: robustlit" in out + err or words == "--version"


def test_the_package_loads_nothing_heavy():
    out, _, heavy = loaded_after("import robustlit; print(robustlit.__version__, *dir(robustlit))")
    assert heavy == [] and {"load", "load_network", "stress", "audit", "__version__"} <= {*out.split()}


def test_the_front_door_loads_torch_and_little_else():
    _, err, heavy = loaded_after("from robustlit import audit, load, load_network, stress")
    assert heavy == ["torch", "numpy"], err


def names_of_pandas(function):
    "Whether a function asks for `pd` as it runs, and whether it imports it itself."
    body = [n for part in function.body for n in ast.walk(part)]
    asks = any(isinstance(n, ast.Name) and n.id == "pd" for n in body)
    return asks, any(isinstance(n, ast.Import) and n.names[0].asname == "pd" for n in body)


@pytest.mark.parametrize("path", sorted((Path(robustlit.__file__).parent).rglob("*.py")), ids=lambda p: p.stem)
def test_what_waits_for_pandas_imports_it(path):
    "Where pandas is imported for the type checker alone, each function that uses it imports it."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(isinstance(s, ast.Import) and s.names[0].name == "pandas" for s in tree.body):
        return
    for f in ast.walk(tree):
        if isinstance(f, ast.FunctionDef):
            asks, imports = names_of_pandas(f)
            assert imports or not asks, f"{f.name} uses pd: it must say `import pandas as pd` itself"
            written = [f.returns, *(a.annotation for a in [*f.args.args, *f.args.kwonlyargs])]
            bare = [n for w in written if w for n in ast.walk(w) if isinstance(n, ast.Name) and n.id == "pd"]
            assert not bare, f"{f.name}: an annotation with pd must stand in quotes"


def test_the_front_door_gives_functions():
    from robustlit import audit, load, load_network, stress

    homes = {f.__name__: f.__module__ for f in (audit, load, load_network, stress)}
    assert homes == dict(
        audit="robustlit.masking", load="robustlit.data", load_network="robustlit.zoo", stress="robustlit.stressors"
    )
    with pytest.raises(AttributeError, match="no attribute 'stres'"):
        robustlit.stres  # noqa: B018


def test_the_front_door_is_followed_by_the_digest():
    from robustlit.digest import definitions

    def asked():
        from robustlit import load

        return load("digits")

    assert "robustlit.data.load" in definitions(asked)


def without(modules, code):
    "Exit code and outputs of code in a process in which these modules are not installed."
    block = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True)


EXTRA_MODULES = tuple(m for modules in EXTRAS.values() for m in modules)


@pytest.mark.parametrize("extra, words", [("sweeps", "list"), ("notebooks", "diff HEAD"), ("sweeps", "run forgetting")])
def test_a_command_names_the_extra_that_it_lacks(extra, words):
    done = without(EXTRAS[extra], f"from robustlit.command import main; sys.exit(main({words.split()}))")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f'pip install "robustlit[{extra}]"' in done.stderr


@pytest.mark.parametrize("words", ["run forgetting", "sweep forgetting -g seed 0:2", "list", "status"])
def test_what_needs_several_extras_names_them_at_once(words):
    done = without(EXTRA_MODULES, f"from robustlit.command import main; sys.exit(main({words.split()}))")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and 'pip install "robustlit[notebooks,sweeps]"' in done.stderr


def test_data_and_stress_need_no_extra(tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    for words in (["data"], "stress mynet:make --images 10 --suite noise_blur --no-audit --out page.html".split()):
        code = f"import os; os.chdir({str(tmp_path)!r})\nfrom robustlit.command import main; sys.exit(main({words}))"
        done = without(EXTRA_MODULES, code)
        assert done.returncode == 0, done.stderr
    assert "report: page.html" in done.stdout and "blur" in done.stdout
    assert (tmp_path / "page.html").stat().st_size > 10_000 and (tmp_path / "page.csv").exists()
    code = "from robustlit.command import main; sys.exit(main(['stress', 'no_such_module:make', '--images', '0']))"
    done = without(EXTRA_MODULES, code)
    assert done.returncode == 2 and done.stderr.startswith("robustlit: `--images`") and done.stderr.count("\n") == 1


def test_the_library_works_without_extras():
    code = (
        "from robustlit import audit, load, load_network, stress\nimport robustlit.minimal_attacks, robustlit.records\n"
    )
    code += (
        "import robustlit.metaplasticity.layers, robustlit.metaplasticity.optimizer, robustlit.sleep.baselines, torch\n"
    )
    code += "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    code += "print(len(stress(net, load('digits'), 'noise_blur', images=20)))"
    done = without(EXTRA_MODULES, code)
    assert done.returncode == 0 and int(done.stdout) > 5, done.stderr


def test_extras_are_those_of_the_settings():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
    made_by = packages_distributions()
    for extra, modules in EXTRAS.items():
        asked = {canonicalize_name(Requirement(r).name) for r in settings["DEFAULT"][f"{extra}_requirements"].split()}
        assert {canonicalize_name(d) for m in modules for d in made_by[m]} == asked
