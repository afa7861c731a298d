"""The digest of content: what changes it, what does not, and whether it reaches all that runs."""

import ast
import functools
import importlib
import os
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from robustlit import digest as D
from robustlit.digest import Code, Table, code_digest, definitions, entry_digests, note, noting, remember, unfollowed
from robustlit.records import find_experiment, known_experiments

# A package of texts


def code_of(files):
    "`Code` over a dict from module to text; `p` is a package."
    texts = {"p": "", **{k: textwrap.dedent(v) for k, v in files.items()}}
    packages = {name.rpartition(".")[0] for name in texts}
    return Code(lambda name: (texts[name], name in packages) if name in texts else None, lambda top: sorted(texts))


def digest_of(files, name="p.main.f"):
    module, _, function = name.rpartition(".")
    return code_of(files).digest((module, function))


MAIN = """
    import numpy as np
    from .help import helper, LIMIT
    from .tables import look
    from .checks_like import other

    def f(x, eps=0.1):
        "What it does."
        total = helper(x, scale=eps)
        for step in range(LIMIT):
            total = total + np.linalg.norm(x) * step
        return look("fog")(total)
"""
HELP = """
    LIMIT = 3

    class Base:
        def go(self, x):
            return x + 1

    class Way(Base):
        pass

    def helper(x, scale=1.0):
        way = Way()
        return way.go(x) * scale
"""
TABLES = """
    from robustlit.digest import Table
    def fog(x):
        return x + 7
    def snow(x):
        return x + 8
    known = Table("weather", dict(fog=fog, snow=snow))
    def look(name):
        return known[name]
"""
FILES = {"p.main": MAIN, "p.help": HELP, "p.tables": TABLES, "p.checks_like": "other = 1"}


def swapped(module, old, new, **more):
    assert old in FILES[module]
    return {**FILES, module: FILES[module].replace(old, new), **more}


MOVED = HELP.replace("def helper", "from .help import *\n\n    def unused").replace(
    "LIMIT = 3", "from .far import helper\n    LIMIT = 3"
)
FAR = """
    from .help import Way
    def helper(x, scale=1.0):
        way = Way()
        return way.go(x) * scale
"""
SAME = {
    "an unused function": swapped("p.help", "LIMIT = 3", "def unused(a): return a\n    LIMIT = 3"),
    "an unused class": swapped("p.main", "def f", "class No:\n        x = 1\n\n    def f"),
    "an unused import": swapped("p.main", "import numpy", "import os\n    import numpy"),
    "a docstring": swapped("p.main", "What it does", "In other words"),
    "a comment": swapped("p.main", "return look", "# so\n        return look"),
    "a renamed local": swapped("p.main", "step", "i"),
    "a renamed argument, at its call too": {
        **swapped("p.help", "scale", "factor"),
        "p.main": MAIN.replace("scale=", "factor="),
    },
    "a renamed function": {**swapped("p.help", "helper", "assist"), "p.main": MAIN.replace("helper", "assist")},
    "a renamed class": {
        **FILES,
        "p.help": HELP.replace("Base", "Root").replace("Way()", "Path()").replace("class Way", "class Path"),
    },
    "a renamed module": {
        "p.elsewhere": HELP,
        "p.main": MAIN.replace(".help", ".elsewhere"),
        "p.tables": TABLES,
        "p.checks_like": "",
    },
    "a moved function": {**FILES, "p.help": MOVED, "p.far": FAR},
    "an annotation": swapped("p.main", "eps=0.1", "eps: float | None=0.1"),
    "another way to import": {
        **FILES,
        "p.main": MAIN.replace("from .help import helper, LIMIT", "import p.help as k")
        .replace("helper(", "k.helper(")
        .replace("(LIMIT", "(k.LIMIT"),
    },
    "another name for a library": {
        **FILES,
        "p.main": MAIN.replace("import numpy as np", "from numpy import linalg").replace("np.linalg", "linalg"),
    },
    "definitions in another order": swapped(
        "p.tables",
        "def fog(x):\n        return x + 7\n    def snow(x):\n        return x + 8",
        "def snow(x):\n        return x + 8\n    def fog(x):\n        return x + 7",
    ),
    "a new entry of a table": swapped("p.tables", "snow=snow", "snow=snow, hail=snow"),
    "an entry set afterwards": swapped("p.tables", "def look", "known['hail'] = snow\n    def look"),
    "a changed entry, which only the run can have used": swapped("p.tables", "x + 8", "x + 9"),
    "a check": {
        **FILES,
        "p.main": MAIN.replace("import numpy", "from robustlit.checks import check_number\n    import numpy").replace(
            "total = helper", "check_number(eps, 'eps', 0)\n        total = helper"
        ),
    },
    "a check that hands on": {
        **FILES,
        "p.main": MAIN.replace("import numpy", "from robustlit.checks import check_number\n    import numpy").replace(
            "scale=eps", "scale=check_number(eps, 'eps', 0)"
        ),
    },
    "a decorator that checks": {
        **FILES,
        "p.main": MAIN.replace("import numpy", "from robustlit.checks import checked\n    import numpy").replace(
            "def f(", "@checked\n    def f("
        ),
    },
    "a changed function of another name in a table's module": swapped(
        "p.tables", "def snow", "def hail(x):\n        return 1\n    def snow"
    ),
}
CHANGED = {
    "a line of the body": swapped("p.main", "* step", "* step + 1"),
    "a constant": swapped("p.help", "LIMIT = 3", "LIMIT = 4"),
    "a helper's default": swapped("p.help", "scale=1.0", "scale=2.0"),
    "a default of its own": swapped("p.main", "eps=0.1", "eps=0.2"),
    "an inherited method": swapped("p.help", "x + 1", "x + 2"),
    "a base class": swapped("p.help", "class Way(Base)", "class Way(dict)"),
    "a helper's body": swapped("p.help", "way.go(x) * scale", "way.go(x) + scale"),
    "an argument that goes elsewhere": swapped("p.help", "helper(x, scale=1.0)", "helper(scale=1.0, x=2)"),
    "another function of a library": swapped("p.main", "np.linalg.norm", "np.linalg.det"),
    "how a table is asked": swapped("p.tables", "known[name]", "known[name[1:]]"),
    "a decorator": swapped("p.main", "def f", "@other\n    def f"),
    "two locals exchanged": swapped("p.main", "total + np.linalg.norm(x)", "x + np.linalg.norm(total)"),
    "a constant that turns from 1 to True": {**FILES, "p.help": HELP.replace("x + 1", "x + True")},
    "a name bound twice": swapped("p.help", "LIMIT = 3", "LIMIT = 3\n    LIMIT = 5"),
    "a statement of the module that sets something outside": swapped(
        "p.help", "LIMIT = 3", "import torch\n    torch.set_default_dtype(torch.float64)\n    LIMIT = 3"
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_does_not_count(kind):
    assert digest_of(SAME[kind]) == digest_of(FILES)


@pytest.mark.parametrize("kind", CHANGED)
def test_what_counts(kind):
    assert digest_of(CHANGED[kind]) != digest_of(FILES)


def test_a_dataclass_counts_its_annotations():
    text = "from dataclasses import dataclass\n@dataclass\nclass C:\n    a: int = 1\ndef f():\n    return C()\n"
    assert digest_of({"p.main": text}) != digest_of({"p.main": text.replace("a: int", "a: float")})


def test_the_class_that_an_annotation_names_is_followed():
    text = "class C:\n    def go(self):\n        return 1\ndef f(x: 'C | None'):\n    return x.go()\n"
    assert digest_of({"p.main": text}) != digest_of({"p.main": text.replace("return 1", "return 2")})
    alias = text.replace("'C | None'", "Kinds").replace("def f", "Kinds = C | int\ndef f")
    assert digest_of({"p.main": alias}) != digest_of({"p.main": alias.replace("return 1", "return 2")})


# Ways of reaching: in each, `g` of p.k is what `f` calls in the end

K = "def g():\n    return 1\ndef away():\n    return 5\n"
WAYS = {
    "from . import k": "from . import k\ndef f(): return k.g()",
    "import a.b as k": "import p.k as k\ndef f(): return k.g()",
    "import a.b": "import p.k\ndef f(): return p.k.g()",
    "from k import g": "from .k import g\ndef f(): return g()",
    "absolute": "from p.k import g as h\ndef f(): return h()",
    "inside the function": "def f():\n    from .k import g\n    return g()",
    "a module inside the function": "def f():\n    from . import k\n    return k.g()",
    "under try": "try:\n    from .k import g\nexcept ImportError:\n    g = None\ndef f(): return g()",
    "under if": "import sys\nif sys.version_info > (3,):\n    from .k import g\nelse:\n    g = None\ndef f(): return g()",
    "a star": "from .k import *\ndef f(): return g()",
    "an alias": "from .k import g\nh = g\ndef f(): return h()",
    "a subscript of a dict": "from .k import g\nT = {}\nT['x'] = g\ndef f(): return T['x']()",
    "update": "from .k import g\nT = {}\nT.update(x=g)\ndef f(): return T['x']()",
    "setdefault": "from .k import g\nT = {}\nT.setdefault('x', g)\ndef f(): return T['x']()",
    "a loop at module level": "from .k import g\nT = {}\nfor n in 'ab':\n    T[n] = g\ndef f(): return T['a']()",
    "an if at module level": "from .k import g\nT = {}\nif len('ab') > 1:\n    T['a'] = g\ndef f(): return T['a']()",
    "a comprehension": "from .k import g\nT = {n: g for n in 'ab'}\ndef f(): return T['a']()",
    "append": "from .k import g\nT = []\nT.append(g)\ndef f(): return T[0]()",
    "augmented assignment": "from .k import g\nT = {}\nT |= {'a': g}\ndef f(): return T['a']()",
    "an attribute of a class set later": "from .k import g\nclass C: pass\nC.go = g\ndef f(): return C.go()",
    "a lambda": "from .k import g\nh = lambda: g()\ndef f(): return h()",
    "a closure": "from .k import g\ndef f():\n    def inner():\n        return g()\n    return inner()",
    "a default": "from .k import g\ndef f(h=g): return h()",
    "partial": "from functools import partial\nfrom .k import g\nh = partial(g)\ndef f(): return h()",
    "lru_cache": "from functools import lru_cache\nfrom .k import g\n@lru_cache\ndef h(): return g()\ndef f(): return h()",
    "numba": "from numba import njit\nfrom .k import g\n@njit\ndef h(): return g()\ndef f(): return h()",
    "a module of torch": "from torch import nn\nfrom .k import g\nclass N(nn.Module):\n    def forward(self, x): return g()\ndef f(): return N()(1)",
    "a constant at import": "from .k import g\nC = g()\ndef f(): return C",
    "a method": "from .k import g\nclass A:\n    def m(self): return g()\ndef f(): return A().m()",
    "a property": "from .k import g\nclass A:\n    @property\n    def m(self): return g()\ndef f(): return A().m",
    "an inherited method": "from .k import g\nclass A:\n    def m(self): return g()\nclass B(A): pass\ndef f(): return B().m()",
    "a class by its annotation": "from .k import g\nclass A:\n    def m(self): return g()\ndef f(a: A): return a.m()",
    "a class that a call returns": "from .k import g\nclass A:\n    def m(self): return g()\ndef make() -> A: ...\ndef f(): return make().m()",
    "global": "from .k import g\nh = None\ndef set():\n    global h\n    h = g\nset()\ndef f(): return h()",
    "getattr with a text": "from . import k\ndef f(): return getattr(k, 'g')()",
    "import_module": "import importlib\ndef f(): return importlib.import_module('p.k').g()",
    "a module handed on": "from . import k\ndef call(m): return m.g()\ndef f(): return call(k)",
    "a match": "from .k import g\ndef f(x=1):\n    match x:\n        case 1: return g()",
    "an argument of a decorator": "from .k import g\ndef with_(h):\n    return lambda fn: h\n@with_(g)\ndef f(): return 0",
    "singledispatch": "from functools import singledispatch\nfrom .k import g\n@singledispatch\ndef h(x): return 0\n@h.register(int)\ndef _(x): return g()\ndef f(): return h(1)",
    "a walrus": "from .k import g\ndef f():\n    return (h := g)()",
    "a star argument": "from .k import g\ndef f(): return (lambda *a: a[0]())(*[g])",
    "async": "from .k import g\nasync def h(): return g()\ndef f(): return h()",
    "a with at module level": "import contextlib\nfrom .k import g\nT = {}\nwith contextlib.suppress(KeyError):\n    T['a'] = g\ndef f(): return T['a']()",
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_reaching(way):
    before = digest_of({"p.main": WAYS[way], "p.k": K})
    assert digest_of({"p.main": WAYS[way], "p.k": K.replace("return 1", "return 2")}) != before
    if way not in ("import_module", "a module handed on"):
        assert digest_of({"p.main": WAYS[way], "p.k": K.replace("return 5", "return 6")}) == before
    assert not code_of({"p.main": WAYS[way], "p.k": K}).unfollowed([("p.main", "f")])


def test_a_decorator_of_another_module_fills_a_table():
    files = {
        "p.a": "T = {}\ndef register(name):\n    def keep(fn):\n        T[name] = fn\n        return fn\n    return keep\ndef f(): return T['x']()",
        "p.b": "from .a import register\n@register('x')\ndef g(): return 1\n",
    }
    before = digest_of(files, "p.a.f")
    assert digest_of({**files, "p.b": files["p.b"].replace("1", "2")}, "p.a.f") != before
    assert digest_of({**files, "p.b": files["p.b"] + "def h(): return 3\n"}, "p.a.f") == before
    direct = {"p.a": "T = {}\ndef f(): return T['x']()", "p.b": "from .a import T\nT['x'] = 1\n"}
    assert digest_of(direct, "p.a.f") != digest_of({**direct, "p.b": "from .a import T\nT['x'] = 2\n"}, "p.a.f")


DOORS = {
    "a dict from name to module": "_home = {'g': 'k'}\ndef __getattr__(name):\n    import importlib\n    return getattr(importlib.import_module('p.' + _home[name]), name)",
    "a dict from module to names": "_homes = {'k': ['g']}\ndef __getattr__(name):\n    ...",
    "a dict by keywords": "_home = dict(g='k')\ndef __getattr__(name):\n    ...",
    "with a colon": "def __getattr__(name):\n    return {'g': 'p.k:g'}[name]",
}


@pytest.mark.parametrize("door", DOORS)
def test_a_front_door_is_followed(door):
    files = {"p": DOORS[door], "p.main": "from p import g\ndef f(): return g()", "p.k": K}
    assert digest_of(files) != digest_of({**files, "p.k": K.replace("return 1", "return 2")})
    assert digest_of(files) == digest_of({**files, "p.k": K.replace("return 5", "return 6")})


def test_a_local_shadows_a_global():
    text = "def g():\n    return 1\ndef f(g):\n    return g()\n"
    assert digest_of({"p.main": text}) == digest_of({"p.main": text.replace("return 1", "return 2")})
    text = "def g():\n    return 1\ndef f(x):\n    return [g for g in x]\n"
    assert digest_of({"p.main": text}) == digest_of({"p.main": text.replace("return 1", "return 2")})


def test_cycles_do_not_depend_on_where_one_starts():
    text = "\n".join(f"def f{i}(n):\n    return f{(i + 1) % 6}(n - {i}) if n else f{(i + 3) % 6}" for i in range(6))
    starts = []
    for start in range(6):
        code = code_of({"p.main": text})
        code.digest(("p.main", f"f{start}"))
        starts.append([code.digest(("p.main", f"f{i}")) for i in range(6)])
    assert all(s == starts[0] for s in starts) and len({*starts[0]}) == 6
    far = code_of({"p.main": text.replace("n - 4", "n - 9")})
    assert all(far.digest(("p.main", f"f{i}")) != starts[0][i] for i in range(6))


def test_what_cannot_be_followed_is_listed():
    text = "import importlib\nfrom . import k\ndef f(name):\n    importlib.import_module(name).g()\n    return getattr(k, name)(), eval(name)\n"
    found = code_of({"p.main": text, "p.k": K}).unfollowed([("p.main", "f")])
    assert len(found) == 3 and all(place.startswith("p.main:") for place in found)


FURTHER = {
    "an import bound twice": dict(
        main="def f():\n    try:\n        from .s import g\n    except ImportError:\n        from .k import g\n    return g()",
        s="def g(): return 0",
    ),
    "two definitions called _": dict(
        main="from functools import singledispatch\nfrom .k import g\n@singledispatch\ndef h(x): return 0\n@h.register(int)\ndef _(x): return g()\n@h.register(str)\ndef _(x): return 3\ndef f(): return h(1)"
    ),
    "a function with the name of its module": dict(
        p="from .train import train",
        train="from .k import g\ndef train(): return 0\ndef other(): return g()",
        main="from .train import other\ndef f(): return other()",
    ),
    "the default of getattr": dict(main="import torch\nfrom .k import g\ndef f(): return getattr(torch, 'x', g)()"),
    "the earlier meaning of a name": dict(
        main="from .k import g\ndef h(): return g()\nold = h\ndef h(): return old() + 1\ndef f(): return h()"
    ),
    "a class attribute of the same name": dict(
        main="from .k import g\ndef go(): return g()\nclass C: go = staticmethod(go)\ndef f(): return C.go()"
    ),
    "a comprehension of the same name": dict(
        main="from .k import g\nh = g\nT = [0 for h in range(3)]\ndef f(): return h()"
    ),
    "with as": dict(main="from .k import g\nfrom x import ctx\nwith ctx(g) as h: pass\ndef f(): return h()"),
    "a walrus in a test": dict(main="from .k import g\nif (h := g): pass\ndef f(): return h()"),
    "a match that binds": dict(
        main="import sys\nfrom .k import g\nh = g\nmatch sys.platform:\n    case 'zz': h = None\ndef f(): return h()"
    ),
    "the last star": dict(s="def g(): return 7", main="from .s import *\nfrom .k import *\ndef f(): return g()"),
    "a module that hands on": dict(
        j="from .k import g", main="from . import j\ndef call(m): return m.g()\ndef f(): return call(j)"
    ),
    "a table of another module": dict(
        t="T={}", main="from .t import T\ndef f(): return T['x']()", b="from . import t\nfrom .k import g\nt.T['x'] = g"
    ),
    "a hook for subclasses": dict(
        main="from .k import g\nREG=[]\nclass Base:\n    def __init_subclass__(cls):\n        REG.append(cls)\nclass A(Base):\n    def go(self): return g()\ndef f(): return REG[0]().go()"
    ),
    "a relative import by text": dict(
        main="import importlib\ndef f(): return importlib.import_module('.k', __package__).g()"
    ),
    "what the package does at import": dict(
        p="import torch\nfrom .k import g\ntorch.manual_seed(g())", main="def f(): return 1"
    ),
    "registering in a circle": dict(
        t="T = {}\ndef a(x, n=0):\n    T['x'] = x\n    n and b(x, n-1)\ndef b(x, n=0):\n    n and a(x, n-1)",
        aa="from .t import a\na(None)",
        bb="from .t import b\nfrom .k import g\nb(g, 1)",
        main="from .t import T\ndef f(): return T['x']()",
    ),
}


@pytest.mark.parametrize("way", FURTHER)
def test_further_ways_of_reaching(way):
    files = {"p.k": K, **{name if name == "p" else f"p.{name}": text for name, text in FURTHER[way].items()}}
    assert digest_of(files) != digest_of({**files, "p.k": K.replace("return 1", "return 2")})


def test_imports_in_a_circle_end():
    files = {"p.a": "from .b import g\ndef f(): return g()", "p.b": "from .a import g\nfrom .k import *", "p.k": K}
    assert len(digest_of(files, "p.a.f")) == 16


def test_what_is_installed_elsewhere_is_no_part_of_the_code(tmp_path, monkeypatch):
    for home in ("lib/site-packages", "dist-packages"):
        (tmp_path / home / f"strange_{len(home)}").mkdir(parents=True)
        (tmp_path / home / f"strange_{len(home)}" / "__init__.py").write_text("def g(): return 1")
        monkeypatch.syspath_prepend(str(tmp_path / home))
        assert not D._followed(f"strange_{len(home)}", ())
        assert D._followed(f"strange_{len(home)}", (f"strange_{len(home)}",))


# Live functions


def made(step):
    def inner(x):
        return x + step

    return inner


def test_closures_lambdas_partials_and_cached_functions():
    assert code_digest(made(1)) == code_digest(made(1)) != code_digest(made(2))
    pair = [lambda x: x + 1, lambda x: x + 2]
    assert code_digest(pair[0]) != code_digest(pair[1])
    assert code_digest(pair[0]) == code_digest(lambda y: y + 1)
    assert code_digest(functools.partial(made, 1)) != code_digest(functools.partial(made, 2))
    assert code_digest(functools.lru_cache(made)) == code_digest(made)
    assert code_digest(Table) == code_digest(Table) and len(code_digest(len)) == 16
    with pytest.raises(TypeError, match="`function` must be"):
        code_digest("sleep")


class Scaled:
    def __init__(self, by):
        self.by = by

    def go(self, x):
        return self.by * x


def times(n):
    def decorate(fn):
        @functools.wraps(fn)
        def call():
            return n * fn()

        return call

    return decorate


def test_what_a_function_holds_on_to_counts():
    assert code_digest(Scaled(1).go) == code_digest(Scaled(1).go) != code_digest(Scaled(2).go)
    assert len({code_digest(made(v)) for v in (range(3), range(5), Path("a"), Path("b"))}) == 4
    assert len({code_digest(f) for f in (times(2)(made), times(3)(made), made)}) == 3


SCRIPT = """
from robustlit.digest import code_digest
from lib.signs import *
{cells}
print(code_digest(f))
"""


def test_a_script_and_a_notebook_give_the_digest_of_their_module(tmp_path):
    body = "STEP = 3\n\ndef helper(x, k=2):\n    return sign(x) * k + STEP\n\ndef f(x):\n    return helper(x, k=4)\n"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").touch()
    (tmp_path / "lib" / "signs.py").write_text("def sign(x):\n    return 1 if x > 0 else -1\n")
    (tmp_path / "own.py").write_text("from lib.signs import *\n" + body)
    (tmp_path / "script.py").write_text(SCRIPT.format(cells=body))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    ask = "from own import f; from robustlit.digest import code_digest; print(code_digest(f))"
    cells = "from IPython.core.interactiveshell import InteractiveShell as S\ns = S.instance()\n"
    parts = [
        SCRIPT.split("{cells}")[0],
        *body.replace("k=2", "k=1").split("\n\n"),
        *body.split("\n\n")[1:],
        "print(code_digest(f))",
    ]
    cells += "".join(f"s.run_cell({p!r}, store_history=True)\n" for p in parts)
    runs = [[sys.executable, "-c", ask], [sys.executable, str(tmp_path / "script.py")], [sys.executable, "-c", cells]]
    printed = [subprocess.run(r, env=env, capture_output=True, text=True, cwd=tmp_path) for r in runs]
    assert len({p.stdout for p in printed}) == 1 and len(printed[0].stdout.strip()) == 16, [p.stderr for p in printed]


def test_a_package_is_remembered_as_it_was_loaded(tmp_path, monkeypatch):
    (tmp_path / "kept.py").write_text("def f():\n    return 1\n")
    (tmp_path / "kept_too").mkdir()
    (tmp_path / "kept_too" / "__init__.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    f = importlib.import_module("kept_too").f
    remember("kept_too")
    before = code_digest(f)
    (tmp_path / "kept_too" / "__init__.py").write_text("def f():\n    return 22\n")
    assert code_digest(f) != before == code_digest(f, loaded=True)


# Tables


def test_a_table_notes_what_it_gives_out():
    table = Table("letters", dict(a=1, b=2), c=3)
    with noting() as uses:
        assert "a" in table and len(table) == 3 and table.names() == ("a", "b", "c")
        assert not uses
        assert table["a"] == 1 and table.get("b") == 2 and table.get("z") is None
        thread = threading.Thread(target=lambda: table["c"])
        thread.start(), thread.join()
    table["b"]
    assert uses == {("letters", x) for x in "abc"}
    for walk in (dict, list, sorted, lambda t: [*t.items()], lambda t: [*t.values()], lambda t: {**t}):
        with noting() as uses:
            walk(table)
        assert uses == {("letters", x) for x in "abc"}
    with noting() as uses, noting() as inner:
        note("t", "e")
    assert uses == inner == {("t", "e")}
    with pytest.raises(KeyError):
        table["z"]


ENTRIES = """
    from robustlit.digest import Table
    T = Table("t", {"a": 1, "b": [2]})
    T["c"] = 3
    T.update(d=4)
    def register(name):
        def keep(fn):
            T[name] = fn
            return fn
        return keep
    @register("e")
    def anything(x):
        return 5
    @register(name="f")
    def other(x):
        return 6
"""


@pytest.mark.parametrize(
    "old, new, entry",
    [("1,", "9,", "a"), ("[2]", "[9]", "b"), ("= 3", "= 9", "c"), ("=4", "=9", "d"), ("5", "9", "e"), ("6", "9", "f")],
)
def test_an_entry_changes_alone(old, new, entry):
    before, after = code_of({"p.main": ENTRIES}), code_of({"p.main": ENTRIES.replace(old, new)})
    changed = {e for e in "abcdef" if before.digest(("p.main", "T", e)) != after.digest(("p.main", "T", e))}
    assert changed == {entry}
    more = code_of({"p.main": ENTRIES.replace("T.update(d=4)", "T.update(d=4, g=7)")})
    assert all(before.digest(("p.main", "T", e)) == more.digest(("p.main", "T", e)) for e in "abcdef")


def test_a_loop_that_fills_a_table_counts_for_every_entry():
    text = "from robustlit.digest import Table\nT = Table('t')\nfor n in 'ab':\n    T[n] = n + 'x'\n"
    one, two = code_of({"p.main": text}), code_of({"p.main": text.replace("'x'", "'y'")})
    assert all(one.digest(("p.main", "T", e)) != two.digest(("p.main", "T", e)) for e in "ab")


def test_a_text_picks_an_entry():
    text = "from robustlit.digest import Table\nT = Table('t', a=1, b=2)\ndef f():\n    return T['a']\n"
    assert digest_of({"p.main": text}) != digest_of({"p.main": text.replace("a=1", "a=9")})
    assert digest_of({"p.main": text}) == digest_of({"p.main": text.replace("b=2", "b=9")})


# The package itself


@pytest.fixture(scope="module")
def package():
    names = sorted(known_experiments())
    functions = {n: find_experiment(n).function for n in names}
    return {n: (f.__module__, f.__name__) for n, f in functions.items() if f.__module__.startswith("robustlit.")}


@pytest.fixture(scope="module")
def base(package):
    return D._code()


def test_every_experiment_has_a_digest_of_its_own_and_nothing_is_lost(package, base):
    digests = {n: base.digest(k) for n, k in package.items()}
    assert len({*digests.values()}) == len(digests) >= 17
    lost = {u.partition(": ")[2] for k in package.values() for u in base.unfollowed(base.reached(k))}
    assert lost == {
        "importlib.import_module(homes[meant[0]])"
    }  # of the zoo: the record carries the network as an entry
    assert all(code_digest(find_experiment(n)) == d for n, d in digests.items())
    assert {*definitions(find_experiment("forgetting"))} >= {"robustlit.training.Learner", "robustlit.data.load"}
    assert unfollowed(find_experiment("forgetting")) == []


def drawn(base, package, n, seed):
    "Functions of the package that some experiment reaches, drawn, one from a module."
    reached = {k for key in package.values() for k in base.reached(key) if len(k) == 2 and isinstance(k[1], str)}
    homes = {}
    for k in sorted(reached):
        node = base.units(k)[-1].node if k[1] not in ("*", "<module>") and base.units(k) else None
        if isinstance(node, ast.FunctionDef):
            homes.setdefault(k[0], []).append((k, node))
    rng = random.Random(seed)
    return [rng.choice(homes[h]) for h in rng.sample(sorted(homes), n)]


def test_a_changed_line_changes_exactly_the_experiments_that_reach_it(package, base):
    for key, node in drawn(base, package, 6, seed=1):
        spot = node.body[-1]

        def change(text, spot=spot):
            lines = text.splitlines(keepends=True)
            lines.insert(spot.lineno - 1, " " * spot.col_offset + "print(20261126)\n")
            return "".join(lines)

        other = D.edited(key[0], change)
        moved = {n for n, k in package.items() if other.digest(k) != base.digest(k)}
        assert moved == {n for n, k in package.items() if key in base.reached(k)} != set(), key


def test_tidying_changes_nothing(package, base):
    for key, node in drawn(base, package, 4, seed=2):

        def tidy(text, node=node):
            tree = ast.parse(text)
            fn = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.lineno == node.lineno)
            doc = [ast.Expr(ast.Constant("Said in another way."))]
            fn.body = doc + fn.body[isinstance(fn.body[0], ast.Expr) and isinstance(fn.body[0].value, ast.Constant) :]
            names = {n.id for n in ast.walk(fn) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            inner = {n for d in ast.walk(fn) if isinstance(d, ast.Global | ast.Nonlocal) for n in d.names}
            inner |= {a.arg for a in ast.walk(fn) if isinstance(a, ast.arg)}
            for n in ast.walk(fn):
                if isinstance(n, ast.Name) and n.id in names - inner:
                    n.id = f"{n.id}_other"
            tree.body.append(ast.parse("def never_called(a, b=3):\n    return a * b").body[0])
            return ast.unparse(ast.fix_missing_locations(tree))

        other = D.edited(key[0], tidy)
        assert {n for n, k in package.items() if other.digest(k) != base.digest(k)} == set(), key


@pytest.mark.parametrize(
    "module, text",
    [
        ("robustlit.sources", "KNOWN['new'] = _Known((), classes=('a',))"),
        ("robustlit.attacks", "ATTACKS['new'] = PGD"),
        ("robustlit.corruptions", "@_corruption('std', (1, 2, 3, 4, 5))\ndef _haze(x, c, s):\n    return x"),
        ("robustlit.masking", "@_check('nothing', 'cause')\ndef _nothing(s):\n    return False, ''"),
    ],
)
def test_a_new_entry_changes_no_experiment(package, base, module, text):
    other = D.edited(module, lambda old: f"{old}\n{text}\n")
    assert {n for n, k in package.items() if other.digest(k) != base.digest(k)} == set()


def test_entries_of_the_package():
    with noting() as uses:
        from robustlit.data import load

        load("digits")
    assert ("datasets", "digits") in uses
    told = entry_digests(
        {*uses, ("corruptions", "fog"), ("attacks", "pgd"), ("attacks", "no such attack"), ("no table", "x")}
    )
    assert told["attacks/no such attack"] is None and told["no table/x"] is None
    kept = [told[k] for k in ("datasets/digits", "corruptions/fog", "attacks/pgd")]
    assert all(len(d) == 16 for d in kept) and len({*kept}) == 3
