# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Records
#
# > What a finished run leaves behind: its rows, how they were made, and a key that keeps it from being made twice.

# %%
#| default_exp records

# %%
#| export
import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
import typing
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import robustlit
from robustlit.checks import check_choice, check_int

# %%
#| hide
from fastcore.test import expect_fail, test_eq, test_ne


# %% [markdown]
# An experiment is a function from parameters to a tidy table. Calling it twice with the same parameters gives the same table,
# so the second call need not compute anything: `recorded(forgetting, meta=1.35, seed=0)` looks for the **record** of that run first.
#
# A record is the rows together with everything needed to trust them: parameters, seed, commit, versions, hardware, wall time.
# This notebook makes records, finds them again, folds them into the one table per experiment that is committed,
# and reads that table back as tidy data for figures and verdicts.
#
# ## Parameters in one form
#
# Two calls are the same run when their parameters mean the same. A run named by `1` and one named by `1.0` are one,
# and so are a tuple and a list: `canonical` brings every value into the form that JSON would hold.

# %%
#| export
def canonical(
    value,  # Anything made of numbers, booleans, strings, None, lists, tuples and dicts
    name: str = "value",  # Its name, for the message
):  # The same value as JSON holds it
    "`value` in its one canonical form; `TypeError` for what JSON cannot hold, `ValueError` for NaN and infinity."
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be finite to be recorded, got {value!r}")
        return int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return [canonical(v, name) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: canonical(value[k], name) for k in sorted(value)}
    raise TypeError(
        f"`{name}` must be a number, string, boolean, None, or a list or dict of those, got {type(value).__name__}"
    )


# %%
test_eq(canonical((1.0, 0.5, np.float64(2))), [1, 0.5, 2])
with expect_fail(TypeError, "`net` must be a number, string"):
    canonical(torch.nn.ReLU(), "net")
canonical(dict(width=1024.0, sizes=(3, 4)))


# %% [markdown]
# What the experiment receives is this canonical value again, sequences as tuples, and as a float where its signature says `float`:
# the same key can then never stand for two different calls.

# %%
#| export
def _frozen(value):
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _as_argument(value, annotation):
    wants_float = annotation is float or float in typing.get_args(annotation)
    return float(value) if wants_float and type(value) is int else _frozen(value)


def _text(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


# %% [markdown]
# ## An experiment
#
# A **profile** is a size under a name: `smoke` takes seconds, `cpu` minutes on two cores, `paper` is the paper's own protocol.
# It pins some of the parameters; a tuple means *any of these*, the first being the default. The others keep the function's default.

# %%
#| export
PROFILES = ("smoke", "cpu", "paper")

_provenance = dict(
    experiment=pa.string(),
    version=pa.int64(),
    key=pa.string(),
    parameters=pa.string(),
    columns=pa.string(),
    seed=pa.int64(),
    commit=pa.string(),
    python=pa.string(),
    torch=pa.string(),
    numpy=pa.string(),
    robustlit=pa.string(),
    hardware=pa.string(),
    threads=pa.int64(),
    wall_s=pa.float64(),
    peak_mb=pa.float64(),
    gpu_mb=pa.float64(),
    started=pa.string(),
    digest=pa.string(),
    checksum=pa.string(),
)
_reserved = {*_provenance, "profile", "stale"}


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(str(name), list(map(str, known)), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}Known: {', '.join(map(str, known))}"


# %% [markdown]
# An `Experiment` is what the decorator below leaves on the function: its name, its version and its profiles.
# `bind` completes parameters, `key` names a run, `profile_of` says which size a run has.
# The key takes the experiment's name, its explicit version and the parameters; the profile is not in it, so that a run counts for every
# profile that it satisfies.

# %%
#| export
@dataclasses.dataclass(frozen=True)
class Experiment:
    "A function with a name, a version and profiles."

    function: Callable  # From parameters to a DataFrame
    paper: str  # First half of the name
    version: int  # Part of every key: raise it when old records no longer mean the same
    profiles: dict  # Name of a profile to its pinned parameters

    @property
    def name(self) -> str:
        return f"{self.paper}/{self.function.__name__}"

    @functools.cached_property
    def parameters(self) -> dict:
        return dict(inspect.signature(self.function, eval_str=True).parameters)

    def refuse_unknown(self, names):
        "`TypeError` for the first of `names` that is no parameter."
        for n in names:
            if n not in self.parameters:
                raise TypeError(f"{self.name} has no parameter `{n}`; {_nearest(n, self.parameters)}")

    def bind(self, profile: str = "smoke", given: dict | None = None) -> dict:
        "Every parameter's canonical value: as given, else the profile's choice, else the function's default."
        check_choice(profile, tuple(self.profiles), "profile")
        given = {k: v for k, v in (given or {}).items() if v is not None or k not in self.parameters}
        self.refuse_unknown(given)
        pins = {k: v[0] if isinstance(v, tuple) else v for k, v in self.profiles[profile].items()}
        defaults = {k: p.default for k, p in self.parameters.items()}
        full = {**defaults, **pins, **given}
        lacking = [k for k, v in full.items() if v is inspect.Parameter.empty]
        if lacking:
            raise TypeError(f"{self.name} needs a value for {', '.join(f'`{k}`' for k in lacking)}")
        return {k: canonical(v, k) for k, v in full.items()}

    def key(self, bound: dict) -> str:
        "The name of the run with these canonical parameters: 16 hexadecimal digits."
        return _key(self.name, self.version, bound)

    def profile_of(self, bound: dict) -> str:
        "The largest profile all of whose pinned parameters `bound` has, else 'custom'."
        for profile in reversed(PROFILES):
            pins = self.profiles.get(profile)
            if pins and all(k in bound and _among(bound[k], v) for k, v in pins.items()):
                return profile
        return "custom"


def _key(name: str, version: int, bound: dict) -> str:
    return hashlib.sha256(_text([name, version, bound]).encode()).hexdigest()[:16]


def _among(value, pin) -> bool:
    return _text(value) in [_text(canonical(p)) for p in (pin if isinstance(pin, tuple) else (pin,))]


# %% [markdown]
# The experiment of `robustlit.metaplasticity.forgetting` is the function `forgetting`, and its name is `metaplasticity/forgetting`.
# Inside its own notebook the function lives in `__main__`; the module of the same name then says which paper it belongs to.
# A function from anywhere else is an experiment of the group `local`.

# %%
#| export
_registry: dict = {}
_loaded: dict = {}


def _home(name: str) -> list:
    return sorted(p.parent.name for p in Path(robustlit.__file__).parent.glob(f"*/{name}.py"))


def _paper_of(fn: Callable) -> str:
    parts = fn.__module__.split(".")
    if parts[0] == "robustlit" and len(parts) > 2:
        if parts[-1] != fn.__name__:
            raise ValueError(f"the experiment of {fn.__module__} must be called `{parts[-1]}`, got `{fn.__name__}`")
        return parts[1]
    homes = _home(fn.__name__) if fn.__module__ == "__main__" else []
    return homes[0] if homes else "local"


# %%
#| export
def experiment(
    version: int = 1,  # Raise it when old records no longer mean the same
    smoke: dict | None = None,  # Parameters of a run of seconds
    cpu: dict | None = None,  # Parameters of a run of minutes on two cores
    paper: dict | None = None,  # Parameters of the paper's own protocol
    group: str | None = None,  # First half of the name; by default the paper whose folder holds the module
) -> Callable:  # A decorator
    "Make a function an experiment: it stays callable as it is, and gets the attribute `experiment`."
    check_int(version, "version", low=1)
    profiles = {k: v for k, v in zip(PROFILES, (smoke, cpu, paper)) if v is not None}

    def decorate(fn):
        exp = Experiment(fn, group or _paper_of(fn), version, profiles)
        _refuse_bad(exp)

        @functools.wraps(fn)
        def call(*args, **kwargs):
            return fn(*args, **kwargs)

        typing.cast(typing.Any, call).experiment = exp
        _registry[exp.name] = call
        if fn.__module__.startswith("robustlit."):
            _loaded[exp.name] = code_digest(call)  # an edit on disk after this is not what will run
        return call

    return decorate


def _refuse_bad(exp: Experiment):
    if not exp.profiles:
        raise ValueError(f"{exp.name} must have at least one profile: smoke=dict(...), cpu=..., paper=...")
    variadic = [k for k, p in exp.parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)]
    taken = sorted({"force", "store", *(_reserved - {"seed"})} & set(exp.parameters))
    if variadic or taken:
        raise TypeError(f"{exp.name} must name other parameters than {', '.join(variadic + taken)}: those are reserved")
    for profile, pins in exp.profiles.items():
        if not isinstance(pins, dict) or any(v == () for v in pins.values()):
            raise TypeError(f"`{profile}` must be a dict of parameter values, got {pins!r}")
        exp.refuse_unknown(pins)
        for k, v in pins.items():
            canonical(v, k)


# %% [markdown]
# A small experiment to work with: how far a random walk of `steps` steps gets.

# %%
@experiment(version=1, smoke=dict(steps=10), cpu=dict(steps=1000), paper=dict(steps=(10**5, 10**6)))
def walk(
    steps: int = 100,  # Number of steps
    size: float = 1.0,  # Length of one step
    seed: int = 0,  # Seed of the steps
):  # One row a quarter of the walk: `part`, `distance`
    "How far from its start a random walk is after each quarter."
    path = np.random.default_rng(seed).choice([-size, size], steps).cumsum()
    return pd.DataFrame([dict(part=i, distance=abs(path[steps * i // 4 - 1])) for i in range(1, 5)])


# %% [markdown]
# It is still a plain function, and knows what it is besides:

# %%
test_eq(walk.experiment.name, "local/walk")
test_eq(walk.experiment.bind("cpu", dict(seed=3, size=None)), dict(steps=1000, size=1, seed=3))
walk(steps=8, seed=1)

# %% [markdown]
# A million steps is the paper's protocol as much as its default is; a hundred is nobody's.

# %%
sizes = {steps: walk.experiment.profile_of(dict(steps=steps, size=1, seed=0)) for steps in [10, 1000, 10**6, 100]}
test_eq(list(sizes.values()), ["smoke", "cpu", "paper", "custom"])
sizes

# %% [markdown]
# Misspelt names are refused where they are written, in the decorator and in a call:

# %%
with expect_fail(TypeError, "did you mean 'steps'"):
    experiment(smoke=dict(step=3))(lambda steps=1: None)
with expect_fail(TypeError, "local/walk has no parameter `sead`; did you mean 'seed'"):
    walk.experiment.bind("smoke", dict(sead=1))


# %% [markdown]
# `find_experiment` turns a name into its function. Within the package the last half is enough, because module names are unique.

# %%
#| export
def find_experiment(
    which: str | Callable,  # 'metaplasticity/forgetting', 'forgetting', or the function itself
) -> Callable:  # The decorated function
    "The experiment of that name, imported if need be; `ValueError` with the nearest known names."
    if hasattr(which, "experiment"):
        return typing.cast(Callable, which)
    if not isinstance(which, str):
        raise TypeError(f"`which` must be an experiment or its name, got {type(which).__name__}")
    group, _, name = which.rpartition("/")
    for home in _home(name) if name.isidentifier() else []:
        if group in ("", home) and f"{home}/{name}" not in _registry:
            importlib.import_module(f"robustlit.{home}.{name}")
    found = [v for k, v in _registry.items() if k == which or (not group and k.endswith(f"/{name}"))]
    if not found:
        raise ValueError(f"`experiment` is unknown: {which!r}; {_nearest(which, sorted(known_experiments()))}")
    return found[0]


def known_experiments() -> set:  # Names such as 'metaplasticity/forgetting'
    "Names of all experiments: those of the package and those decorated in this process."
    folder = Path(robustlit.__file__).parent
    marked = [p for p in folder.glob("*/*.py") if "\n@experiment(" in p.read_text(encoding="utf-8")]
    return {*_registry, *(f"{p.parent.name}/{p.stem}" for p in marked)}


def _experiment(which: str | Callable) -> Experiment:
    return typing.cast(typing.Any, find_experiment(which)).experiment


# %%
test_eq(find_experiment("walk") is walk, True)
with expect_fail(ValueError, "did you mean 'local/walk'"):
    find_experiment("local/wolk")

# %% [markdown]
# ## Whose code made it
#
# A key says *which* run, not *by which code*. So a digest of the code travels with each record: of everything in the experiment's module that
# the function reaches by name, and of every robustlit module that it imports, directly or not. Comments, docstrings and layout do not count,
# nor do the modules that only keep books or draw, nor the claims and figures that live beside the experiment.

# %%
#| export
_bookkeeping = {"robustlit", *(f"robustlit.{m}" for m in ("records", "claims", "plots", "sweeps", "checks"))}


def _skeleton(node) -> str:
    "The syntax tree as text, without positions, bare strings and whatever differs between versions of Python."
    if isinstance(node, list):
        kept = [n for n in node if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        return f"[{','.join(map(_skeleton, kept))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = [(k, v) for k, v in ast.iter_fields(node) if k not in ("ctx", "kind", "type_comment")]
    return f"{type(node).__name__}({','.join(f'{k}={_skeleton(v)}' for k, v in parts if v is not None and v != [])})"


@functools.lru_cache(256)
def _parsed(path: str, changed: int) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def _tree(path) -> ast.Module:
    return _parsed(str(path), os.stat(path).st_mtime_ns)


# %% [markdown]
# Which modules a module imports is read from its source, so that looking never runs anything.

# %%
#| export
def _module_path(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(tree: ast.Module, package: str) -> set:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {base, *(f"{base}.{a.name}" for a in node.names)}
    return {n for n in names if n.split(".")[0] == "robustlit"} - _bookkeeping


def _modules_below(tree: ast.Module, package: str) -> dict:
    found, todo = {}, _imports(tree, package)
    while todo:
        module = todo.pop()
        path = _module_path(module)
        if path is None or module in found:
            continue
        found[module] = _tree(path)
        todo |= _imports(found[module], module if path.name == "__init__.py" else module.rpartition(".")[0]) - {*found}
    return found


# %% [markdown]
# In the experiment's own module only what the function needs counts: starting from it, every top-level name that is mentioned.
# Statements that bind no name run on import whatever is used, so they always count.

# %%
#| export
def _bound_names(stmt) -> set:
    if isinstance(stmt, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {stmt.name}
    targets = getattr(stmt, "targets", None) or [t for t in [getattr(stmt, "target", None)] if t]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _mentioned(stmt) -> set:
    return {n.id for n in ast.walk(stmt) if isinstance(n, ast.Name)}


def _reached(tree: ast.Module, name: str) -> dict:
    stmts = [s for s in tree.body if not isinstance(s, ast.Import | ast.ImportFrom)]
    free = [s for s in stmts if not _bound_names(s)]
    used, todo = {}, {name}.union(*map(_mentioned, free))
    while todo:
        n = todo.pop()
        used[n] = [s for s in stmts if n in _bound_names(s)]
        for s in used[n]:
            body = s.args.defaults + s.body + [s.args] if n == name and isinstance(s, ast.FunctionDef) else [s]
            todo |= set().union(*map(_mentioned, body)) - {*used}
    return {**{n: s for n, s in used.items() if s}, "": free}


# %%
tree = ast.parse(
    "SCALE = 2\nUNUSED = 3\n\ndef helper(x):\n    return x * SCALE\n\n@claim\ndef f(x):\n    'Doc.'\n    return helper(x)"
)
test_eq(sorted(_reached(tree, "f")), ["", "SCALE", "f", "helper"])
test_eq(
    _skeleton(ast.parse("def f(x):\n    'Doc.'\n    return x  # why")), _skeleton(ast.parse("def f( x ): return (x)"))
)


# %% [markdown]
# A function that was changed in a notebook and not exported yet differs from the module on disk; the digest shows that too.

# %%
#| export
def _bare(stmt):
    return {k: v for k, v in ast.iter_fields(stmt) if k != "decorator_list"}


def _live_source(fn: Callable) -> ast.stmt | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None


def _same(a, b) -> bool:
    return {k: _skeleton(v) for k, v in _bare(a).items()} == {k: _skeleton(v) for k, v in _bare(b).items()}


def _edits(fn: Callable, reached: dict) -> list:
    "Skeletons of the functions that were redefined in a notebook and differ from the module's."
    found = []
    for name, stmts in reached.items():
        live = fn if name == fn.__name__ else getattr(fn, "__globals__", {}).get(name)
        if callable(live) and getattr(live, "__module__", "") == "__main__" and not isinstance(live, type):
            source = _live_source(live)
            found += [_skeleton(source)] if source is not None and not _same(source, stmts[0]) else []
    return found


# %%
#| export
def code_digest(
    which: str | Callable,  # An experiment or its name
) -> str:  # 16 hexadecimal digits
    "Digest of the code that the experiment's numbers depend on, as it stands on disk now."
    exp = _experiment(which)
    fn = exp.function
    module = f"robustlit.{exp.paper}.{fn.__name__}" if fn.__module__ == "__main__" else fn.__module__
    path = _module_path(module) if module.startswith("robustlit.") else None
    path = path or getattr(sys.modules.get(fn.__module__), "__file__", None)
    if path is None or fn.__module__ == "__main__" and not module.startswith("robustlit."):
        source = _live_source(fn)
        parts = [_skeleton(source) if source is not None else fn.__code__.co_code.hex()]
    else:
        tree = _tree(path)
        reached = _reached(tree, fn.__name__)
        own = {
            k: _skeleton([_bare_node(s) if k == fn.__name__ else s for s in v]) for k, v in reached.items() if k != ""
        }
        below = {k: _skeleton(v) for k, v in _modules_below(tree, module.rpartition(".")[0]).items()}
        parts = [own, _skeleton(reached[""]), below, _edits(fn, reached)]
    return hashlib.sha256(_text(parts).encode()).hexdigest()[:16]


def _bare_node(stmt):
    return (
        type(stmt)(**{**dict(ast.iter_fields(stmt)), "decorator_list": []}) if hasattr(stmt, "decorator_list") else stmt
    )


# %%
code_digest(walk)


# %% [markdown]
# ## Where and on what it ran
#
# The rest of the provenance is read from the machine: the commit of the package's source (with `-dirty` when it was edited since),
# the hardware, the number of threads.

# %%
#| export
def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(robustlit.__file__).parent), *args], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def git_commit() -> str | None:  # For example '3f9a1c2b7d10-dirty'; None where the package is not in a git repository
    "Commit of the package's source as this process first saw it, with `-dirty` if it was edited since."
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "--", ".")
    return commit and commit + ("-dirty" if changes else "")


def hardware() -> str:  # For example 'cpu, 2 cores, AMD EPYC'
    "The processor that runs this, by number of cores and name."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"cpu, {cores} cores, {model}"


# %%
hardware()


# %% [markdown]
# Peak memory is that of the run, not of the process: Linux lets a process reset its high-water mark.
# A run counts as one on the GPU if it used memory there.

# %%
#| export
class _Meter:
    "Wall time, peak memory and the device of what happens inside `with`."

    def __enter__(self):
        self.started = datetime.now(UTC).isoformat(timespec="microseconds")
        self.clock = time.perf_counter()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # then the peak is that of the whole process
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_):
        self.wall_s = round(time.perf_counter() - self.clock, 3)
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self.gpu_mb, self.peak_mb = round(gpu / 2**20, 1), _peak_mb()
        self.hardware = torch.cuda.get_device_name() if gpu else hardware()


def _peak_mb() -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024, 1)
    except (OSError, StopIteration):
        resource = importlib.import_module("resource")
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


# %%
with _Meter() as meter:
    block = np.ones(10**7)
meter.wall_s, meter.peak_mb


# %% [markdown]
# ## A record
#
# On disk a record is a flat table: the experiment's own columns, then the provenance, repeated in every row (which compression makes free).
# A packed table is several of these, one below the other, so the same reader serves both.
# Rows hold numbers, booleans, strings or lists of those.

# %%
#| export
def _column_type(kind: pa.DataType, name: str) -> pa.DataType:
    t = pa.types
    for test, target in [
        (t.is_boolean, pa.bool_()),
        (t.is_null, pa.null()),
        (t.is_integer, pa.int64()),
        (t.is_floating, pa.float64()),
    ]:
        if test(kind):
            return target
    if t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if isinstance(kind, pa.DictionaryType):
        return _column_type(kind.value_type, name)
    if isinstance(kind, pa.ListType | pa.LargeListType):
        return pa.list_(_column_type(kind.value_type, name))
    raise TypeError(f"column `{name}` must hold numbers, booleans, strings or lists of those, got {kind}")


def _to_arrow(frame: pd.DataFrame) -> pa.Table:
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as e:
        raise TypeError(f"each column must hold one kind of value: {e}") from e
    fields = [pa.field(f.name, _column_type(f.type, f.name)) for f in table.schema]
    return table.cast(pa.schema(fields))


# %%
_to_arrow(pd.DataFrame(dict(task=[0, 1], accuracy=np.float32([97.5, 88.2]), layer=["a", None]))).schema


# %% [markdown]
# What an experiment returns is looked at before it is kept. A column named like a parameter would be ambiguous later, so it is refused:
# the parameters are put beside the rows when they are read.

# %%
#| export
def _check_rows(rows, exp: Experiment) -> pd.DataFrame:
    if not isinstance(rows, pd.DataFrame):
        raise TypeError(f"{exp.name} must return a DataFrame, got {type(rows).__name__}")
    if rows.empty:
        raise ValueError(f"{exp.name} must return at least one row, got none")
    odd = [c for c in rows.columns if not isinstance(c, str)] + list(rows.columns[rows.columns.duplicated()])
    if odd:
        raise ValueError(f"the columns of {exp.name} must have distinct names, got {odd}")
    clash = [c for c in rows.columns if c in exp.parameters or c in _reserved]
    if clash:
        raise ValueError(f"the rows of {exp.name} must not name parameters or provenance: drop or rename {clash}")
    if any(n is not None for n in rows.index.names):
        raise ValueError(f"the rows of {exp.name} have an index named {list(rows.index.names)}: call reset_index()")
    return rows


# %% [markdown]
# The checksum is taken over values, not bytes: it survives being packed with records of other columns, and still catches any change.

# %%
#| export
def _plain(value):
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value


@dataclasses.dataclass
class Record:
    "The rows of one finished run, with everything that says how they were made."

    rows: pa.Table  # The experiment's own columns
    about: dict  # Provenance: experiment, version, key, parameters, seed, commit, ...

    def __repr__(self):
        a = self.about
        return f"Record({a['experiment']} {a['key']}, {len(self.rows)} rows, {a['wall_s']:g} s on {a['hardware']})"

    @property
    def parameters(self) -> dict:
        return json.loads(self.about["parameters"])

    def frame(self) -> pd.DataFrame:
        "The rows as a DataFrame."
        return self.rows.to_pandas()

    def checksum(self) -> str:
        "Digest of all values, rows and provenance."
        about = {k: _plain(v) for k, v in self.about.items() if k != "checksum"}
        rows = {c: _plain(self.rows[c].to_pylist()) for c in self.rows.column_names}
        return hashlib.sha256(_text([about, rows]).encode()).hexdigest()[:32]

    def table(self) -> pa.Table:
        "Rows and provenance as one flat table."
        n = len(self.rows)
        extra = {k: pa.array([self.about[k]] * n, kind) for k, kind in _provenance.items()}
        return pa.table({**{c: self.rows[c] for c in self.rows.column_names}, **extra})


# %% [markdown]
# `run_record` is the one place where an experiment is run for keeps.

# %%
#| export
def run_record(
    which: str | Callable,  # An experiment or its name
    bound: dict,  # All of its parameters, canonical, as `Experiment.bind` gives them
) -> Record:  # Complete, but not written yet
    "Run the experiment and describe the run."
    exp = _experiment(which)
    digest, commit = _loaded.get(exp.name) if exp.function.__module__ != "__main__" else None, git_commit()
    digest = digest or code_digest(which)
    hints = {k: p.annotation for k, p in exp.parameters.items()}
    with _Meter() as meter:
        rows = exp.function(**{k: _as_argument(v, hints[k]) for k, v in bound.items()})
    table = _to_arrow(_check_rows(rows, exp))
    seed = bound.get("seed")
    about = dict(experiment=exp.name, version=exp.version, key=exp.key(bound), parameters=_text(bound))
    about |= dict(columns=_text(table.column_names), seed=seed if type(seed) is int else None, commit=commit)
    about |= dict(python=platform.python_version(), torch=str(torch.__version__), numpy=np.__version__)
    about |= dict(robustlit=robustlit.__version__, hardware=meter.hardware, threads=torch.get_num_threads())
    about |= dict(wall_s=meter.wall_s, peak_mb=meter.peak_mb, gpu_mb=meter.gpu_mb, started=meter.started)
    record = Record(table, about | dict(digest=digest, checksum=""))
    record.about["checksum"] = record.checksum()
    return record


# %%
record = run_record(walk, walk.experiment.bind("smoke"))
test_eq(record.parameters, dict(steps=10, size=1, seed=0))
record


# %% [markdown]
# Reading splits a table into its records again and holds each against its checksum. A file that cannot be read, or whose values changed,
# is no record.

# %%
#| export
class DamagedRecord(Exception):
    "A record's file that cannot be read, or whose contents are not what was written."


def _split(table: pa.Table) -> list:
    keys = table["key"].to_pylist()
    starts = [i for i, k in enumerate(keys) if i == 0 or k != keys[i - 1]] + [len(keys)]
    return [_record(table.slice(a, b - a)) for a, b in itertools.pairwise(starts)]


def _record(part: pa.Table) -> Record:
    about = {k: part[k][0].as_py() for k in _provenance}
    return Record(part.select(json.loads(about["columns"])).combine_chunks(), about)


def read_records(
    path: str | Path,  # A record's file or a packed table
) -> list:  # Of `Record`
    "All records in a file, each verified; `DamagedRecord` names the file and what is wrong with it."
    try:
        found = _split(pq.read_table(path, partitioning=None))
        if not found:
            raise ValueError("it is empty")
        wrong = [r.about["key"] for r in found if r.checksum() != r.about["checksum"]]
    except FileNotFoundError:
        raise
    except Exception as e:
        raise DamagedRecord(f"{path} is damaged: {e}") from e
    if wrong:
        raise DamagedRecord(f"{path} is damaged: the contents of {', '.join(wrong)} do not match their checksum")
    return found


# %% [markdown]
# Writing goes through a temporary file in the same folder, so that nobody ever sees half a record.
# `exclusive` writes never replace what is there: if two processes finish the same run, the first keeps its place.

# %%
#| export
def _write_file(
    path: Path,  # Where to
    write: Callable,  # Called with an open binary file
    exclusive: bool = False,  # Leave a file alone that is already there
) -> bool:  # Whether it was written
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        if not exclusive:
            os.replace(tmp, path)
            return True
        try:
            os.link(tmp, path)
        except FileExistsError:
            return False
        return True
    finally:
        Path(tmp).unlink(missing_ok=True)


def _write_table(path: Path, table: pa.Table, exclusive: bool = False) -> bool:
    return _write_file(path, lambda f: pq.write_table(table, f, compression="zstd"), exclusive)


# %% [markdown]
# ## The store
#
# Two folders: `runs/`, where each run leaves a file of its own (ignored by git), and `results/`, with one committed table an experiment.
# Both lie in the project's folder, the nearest parent that holds `results/` or `settings.ini`; `ROBUSTLIT_RUNS` and `ROBUSTLIT_RESULTS` move them.

# %%
#| export
def project_folder() -> Path:  # An absolute path
    "The nearest parent of the working directory that holds `results/` or `settings.ini`, else the working directory."
    here = Path.cwd()
    return next((p for p in [here, *here.parents] if (p / "results").is_dir() or (p / "settings.ini").is_file()), here)


class Store:
    "Where records lie: `runs`, a file a run, and `results`, a table an experiment."

    def __init__(
        self,
        runs: str | Path | None = None,  # Folder of fresh records; by default `ROBUSTLIT_RUNS` or the project's `runs`
        results: str
        | Path
        | None = None,  # Folder of tables; by default `ROBUSTLIT_RESULTS` or the project's `results`
    ):
        self.runs = Path(runs or os.environ.get("ROBUSTLIT_RUNS") or project_folder() / "runs").absolute()
        self.results = Path(results or os.environ.get("ROBUSTLIT_RESULTS") or project_folder() / "results").absolute()

    def __repr__(self):
        return f"Store(runs={str(self.runs)!r}, results={str(self.results)!r})"

    def table_path(self, name: str) -> Path:
        "The committed table of an experiment."
        return self.results / f"{name}.parquet"

    def run_paths(self, name: str, key: str = "") -> list:
        "Files of fresh records, oldest attempt first."
        found = [p for p in (self.runs / name).glob(f"{key}*.parquet") if _attempt(p)]
        return sorted(found, key=lambda p: (p.name.split(".")[0], _attempt(p)))

    def packed(self, name: str) -> list:
        "Records of the committed table; a damaged table is named in a warning and counts as empty."
        path = self.table_path(name)
        try:
            return _cached_table(str(path), path.stat().st_mtime_ns, path.stat().st_size)
        except FileNotFoundError:
            return []
        except DamagedRecord as e:
            warnings.warn(f"{e}; restore it from git", stacklevel=2)
            return []

    def load(self, name: str, key: str = "") -> dict:
        "Key to newest record, for one experiment."
        fresh = [r for p in self.run_paths(name, key) for r in _read_or_set_aside(p)]
        old = [r for r in self.packed(name) if key in ("", r.about["key"])]
        return {r.about["key"]: r for r in sorted(old + fresh, key=lambda r: r.about["started"])}

    def find(self, name: str, key: str) -> Record | None:
        "The newest record of one run, or None."
        return self.load(name, key).get(key)

    def names(self) -> list:
        "Experiments that have records, for example 'metaplasticity/forgetting'."
        tables = [p.relative_to(self.results).with_suffix("") for p in self.results.glob("*/*.parquet")]
        runs = [p.parent.relative_to(self.runs) for p in self.runs.glob("*/*/*.parquet")]
        return sorted({p.as_posix() for p in tables + runs})

    def write(self, record: Record, force: bool = False) -> Record:
        "File a fresh record and return the one that counts: an earlier one stays unless `force` adds a newer attempt."
        folder, key = self.runs / record.about["experiment"], record.about["key"]
        table = record.table()
        for attempt in itertools.count(1):
            name = f"{key}.parquet" if attempt == 1 else f"{key}.{attempt}.parquet"
            if _write_table(folder / name, table, exclusive=True):
                return record
            theirs = None if force else self.find(record.about["experiment"], key)
            if theirs is not None:
                return theirs
        raise AssertionError


# %%
#| export
def _attempt(path: Path) -> int:
    "1 for `key.parquet`, 2 for `key.2.parquet`, 0 for other files."
    parts = path.name.split(".")
    return 1 if len(parts) == 2 else int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


@functools.lru_cache(32)
def _cached_table(path: str, changed: int, size: int) -> list:
    return read_records(path)


def _read_or_set_aside(path: Path) -> list:
    try:
        return read_records(path)
    except FileNotFoundError:
        return []
    except DamagedRecord as e:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        try:
            path.rename(aside)
            warnings.warn(f"{e}; set aside as {aside.name}, the run counts as missing", stacklevel=2)
        except OSError:
            warnings.warn(f"{e}; the run counts as missing", stacklevel=2)
        return []


# %% [markdown]
# A store in a temporary folder serves for the examples.

# %%
#| hide
_tmp = tempfile.TemporaryDirectory()
os.environ |= dict(ROBUSTLIT_RUNS=f"{_tmp.name}/runs", ROBUSTLIT_RESULTS=f"{_tmp.name}/results")

# %%
store = Store()
store.write(record)
test_eq(store.find("local/walk", record.about["key"]).about, record.about)
store.names()

# %% [markdown]
# A flipped byte does not go unnoticed, and does not stop the work either: the file is set aside and the run counts as missing.

# %%
path = store.run_paths("local/walk")[0]
content = bytearray(path.read_bytes())
content[40] ^= 255
path.write_bytes(content)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    test_eq(store.find("local/walk", record.about["key"]), None)
test_eq("is damaged" in str(caught[0].message), True)
[p.name.partition("-")[0] for p in path.parent.iterdir()]


# %% [markdown]
# ## Stale
#
# A record whose code has changed since is still used, but it says so. The exception are changes that somebody has confirmed not to touch
# the numbers (below).

# %%
#| export
def _confirmed_path(store: Store, name: str) -> Path:
    return store.results / f"{name}.confirmed.json"


def _confirmations(store: Store, name: str) -> list:
    path = _confirmed_path(store, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _current_digests(which: str | Callable, store: Store) -> set:
    today = code_digest(which)
    told = _confirmations(store, _experiment(which).name)
    return {today, *(c["record_digest"] for c in told if c["code_digest"] == today)}


def _stale_note(record: Record, fn: Callable, store: Store) -> str:
    fresh = record.about["digest"] in _current_digests(fn, store)
    return "" if fresh else ", stale: its code has changed since (force=True runs it again)"


# %% [markdown]
# ## Run it, or read it
#
# `recorded` is the one call that an experiment notebook makes. A parameter that is None takes the profile's choice,
# so a notebook hands on everything from its `parameters` cell and the command line only sets what it wants changed.

# %%
#| export
def recorded(
    fn: Callable,  # An experiment
    profile: str = "smoke",  # 'smoke', 'cpu' or 'paper'
    force: bool = False,  # Run again although there is a record
    store: Store | None = None,  # Where to look and write; by default the project's
    **params,  # Parameters of the experiment; None means the profile's choice
) -> pd.DataFrame:  # The rows
    "Rows of this run: from its record if it has one, else by running it and keeping the record."
    exp = _experiment(fn)
    bound = exp.bind(profile, params)
    key, store = exp.key(bound), store or Store()
    label = f"{exp.name} {key} ({exp.profile_of(bound)})"
    record = None if force else store.find(exp.name, key)
    if record is not None:
        print(f"{label}: reused{_stale_note(record, fn, store)}", flush=True)
    else:
        print(f"{label}: running", flush=True)
        record = store.write(run_record(fn, bound), force)
        print(f"{label}: recorded after {record.about['wall_s']:.1f} s", flush=True)
    rows = record.frame()
    rows.attrs.update(experiment=exp.name, key=key)
    return rows


def key_of(
    fn: Callable,  # An experiment
    profile: str = "smoke",  # Where parameters that are not given come from
    **params,  # Parameters of the experiment
) -> str:  # 16 hexadecimal digits
    "The key of a run, without running it."
    exp = _experiment(fn)
    return exp.key(exp.bind(profile, params))


# %% [markdown]
# The second call computes nothing:

# %%
rows = recorded(walk, seed=1)
again = recorded(walk, seed=1.0, size=None)
pd.testing.assert_frame_equal(rows, again)
test_eq(key_of(walk, seed=1), key_of(walk, seed=1.0, steps=10))
rows


# %% [markdown]
# `missing` lists which runs of a grid have no record yet; this is how a sweep goes on where it stopped.

# %%
#| export
def missing(
    fn: str | Callable,  # An experiment or its name
    profile: str = "smoke",  # Where parameters that are not in the grid come from
    grid: dict | None = None,  # Parameter to the values it takes
    store: Store | None = None,  # Where to look; by default the project's
) -> list:  # Of parameter dicts, in the order of the grid
    "The runs of a grid, all combinations, that have no record."
    exp, store, grid = _experiment(fn), store or Store(), grid or {}
    have = store.load(exp.name)
    runs = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return [run for run in runs if exp.key(exp.bind(profile, run)) not in have]


# %%
todo = missing(walk, "smoke", dict(seed=range(3), size=[1, 2]))
test_eq(len(todo), 5)
todo


# %% [markdown]
# ## Confirmed
#
# A stale record is put right in one of two ways. Running again with `force=True` makes a fresh one;
# `confirm` states that the change does not touch the numbers, with the reason, in a small file beside the table.

# %%
#| export
def confirm(
    which: str | Callable,  # An experiment or its name
    why: str,  # How it was made sure that the numbers are the same
    store: Store | None = None,  # Where to look; by default the project's
) -> int:  # Number of records that were stale and no longer are
    "State that today's code would give the same rows as the code of all records kept so far."
    if not isinstance(why, str) or not why.strip():
        raise ValueError(f"`why` must say how the numbers were found unchanged, got {why!r}")
    exp, store = _experiment(which), store or Store()
    current, today = _current_digests(which, store), code_digest(which)
    old = [r.about["digest"] for r in store.load(exp.name).values() if r.about["digest"] not in current]
    when = datetime.now(UTC).date().isoformat()
    told = [dict(record_digest=d, code_digest=today, why=why, when=when) for d in sorted(set(old))]
    text = json.dumps(_confirmations(store, exp.name) + told, indent=1) + "\n"
    if told:
        _write_file(_confirmed_path(store, exp.name), lambda f: f.write(text.encode()))
    return len(old)


# %% [markdown]
# The walk gets a faster body, and its record is stale; the numbers are the same, and saying so settles it.

# %%
@experiment(version=1, smoke=dict(steps=10), cpu=dict(steps=1000), paper=dict(steps=(10**5, 10**6)))
def walk(steps: int = 100, size: float = 1.0, seed: int = 0):
    path = np.random.default_rng(seed).choice([-size, size], steps).cumsum()
    quarter = np.arange(1, 5)
    return pd.DataFrame(dict(part=quarter, distance=abs(path[steps * quarter // 4 - 1])))


pd.testing.assert_frame_equal(recorded(walk, seed=1), walk(steps=10, seed=1))

# %%
test_eq(confirm(walk, "same rows for ten seeds"), 1)
recorded(walk, seed=1);


# %% [markdown]
# ## Packing
#
# `pack` folds the fresh records into the experiment's table. It keeps what is already there, takes the newest attempt of each run,
# and always writes the same records as the same bytes, so that packing again changes nothing in git.

# %%
#| export
def pack(
    which: str | Callable,  # An experiment or its name
    store: Store | None = None,  # Where to look and write; by default the project's
) -> Path:  # The table
    "Fold all records of an experiment into its one committed table; `ValueError` if there are none."
    store = store or Store()
    name = _name_of(which, store)
    path = store.table_path(name)
    lock = store.runs / name / ".pack.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        if path.exists():
            read_records(path)  # a damaged table is refused here, not replaced
        found = store.load(name).values()
        if not found:
            raise ValueError(f"{name} has no records under {store.runs} or {store.results}")
        ordered = sorted(found, key=lambda r: (r.about["version"], r.about["parameters"], r.about["key"]))
        _write_table(path, _stacked([r.table() for r in ordered], name))
        kept = {r.about["checksum"] for r in read_records(path)}
        assert kept == {r.about["checksum"] for r in ordered}, f"{path} does not hold what was packed"
    return path


def _stacked(tables: list, name: str) -> pa.Table:
    try:
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
        raise ValueError(f"the records of {name} disagree about the kind of a column: {e}") from e
    return table.select([c for c in table.column_names if c not in _provenance] + list(_provenance))


def _name_of(which: str | Callable, store: Store) -> str:
    if isinstance(which, str) and which in store.names():
        return which
    return _experiment(which).name


# %%
for seed in range(3):
    recorded(walk, seed=seed)
table = pack(walk)
first = table.read_bytes()
test_eq(pack(walk).read_bytes() == first, True)
table.name, len(read_records(table)), len(first)


# %% [markdown]
# Runs may come back from another machine as files. `adopt` verifies them and files them as if they had been made here.

# %%
#| export
def adopt(
    path: str | Path,  # A record's file, a packed table, or a folder of such
    store: Store | None = None,  # Where to file them; by default the project's
) -> list:  # The records, in the order of their keys
    "File records that were made elsewhere; `DamagedRecord` for a bad file, and then nothing is filed."
    path, store = Path(path), store or Store()
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no .parquet file in {path}")
    found = [(f, r) for f in files for r in read_records(f)]
    for f, r in found:
        a = r.about
        if a["key"] != _key(a["experiment"], a["version"], r.parameters):
            raise DamagedRecord(f"{f} is damaged: the key {a['key']} is not that of its parameters")
    for _, r in found:
        here = store.load(r.about["experiment"], r.about["key"]).get(r.about["key"])
        if here is None or here.about["checksum"] != r.about["checksum"]:
            store.write(r, force=True)
    return sorted((r for _, r in found), key=lambda r: r.about["key"])


# %%
elsewhere = Store(runs=f"{_tmp.name}/gpu")
recorded(walk, seed=7, store=elsewhere)
adopt(elsewhere.runs)
test_eq(missing(walk, "smoke", dict(seed=[7])), [])


# %% [markdown]
# ## Reading them as data
#
# `records` gives all rows of an experiment with the parameters as columns, and the provenance behind them: `profile`, `stale`, `key`,
# `hardware`, `wall_s`, `commit` and so on. The profile is computed when reading, the largest whose pinned parameters the run has.

# %%
#| export
def _block(record: Record, exp: Experiment, current: set) -> pd.DataFrame:
    frame, a = record.frame(), record.about
    parameters = record.parameters
    about = dict(profile=exp.profile_of(parameters), stale=a["digest"] not in current)
    about |= {k: a[k] for k in _provenance if k not in ("parameters", "columns", "seed", "checksum")}
    left = pd.DataFrame({k: _repeated(_frozen(v), len(frame)) for k, v in parameters.items()}, index=frame.index)
    right = pd.DataFrame({k: _repeated(v, len(frame)) for k, v in about.items()}, index=frame.index)
    return pd.concat([left, frame, right], axis=1)


def _repeated(value, n: int):
    return [value] * n


def _keeps(record: Record, where: dict) -> bool:
    return all(_text(record.parameters.get(k)) in [_text(canonical(v, k)) for v in vs] for k, vs in where.items())


def records(
    which: str | Callable,  # An experiment or its name
    profile: str | None = None,  # Only runs of this size: 'smoke', 'cpu', 'paper' or 'custom'
    stale: bool = True,  # Whether records count whose code has changed since
    version: int | None = None,  # By default the experiment's present version
    store: Store | None = None,  # Where to look; by default the project's
    **where,  # Only runs with these parameter values; a list means any of them
) -> pd.DataFrame:  # Parameters, rows, provenance; empty if there are no records
    "All recorded rows of an experiment as tidy data, a row an observation."
    exp, store = _experiment(which), store or Store()
    if profile is not None:
        check_choice(profile, (*PROFILES, "custom"), "profile")
    exp.refuse_unknown(where)
    where = {k: list(v) if isinstance(v, list | tuple | range | set) else [v] for k, v in where.items()}
    current, version = _current_digests(which, store), version or exp.version
    chosen = [r for r in store.load(exp.name).values() if r.about["version"] == version and _keeps(r, where)]
    chosen = sorted(chosen, key=lambda r: (r.about["parameters"], r.about["key"]))
    chosen = [r for r in chosen if stale or r.about["digest"] in current]
    chosen = [r for r in chosen if profile in (None, exp.profile_of(r.parameters))]
    empty = [*exp.parameters, "profile", "stale", *(set(_provenance) - {"parameters", "columns", "seed", "checksum"})]
    blocks = [_block(r, exp, current) for r in chosen]
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame(columns=list(dict.fromkeys(empty)))


# %%
frame = records(walk, seed=[0, 1])
test_eq(frame.seed.unique().tolist(), [0, 1])
test_eq(set(frame.profile), {"smoke"})
frame[["steps", "seed", "part", "distance", "profile", "stale", "key", "wall_s"]].head(3)


# %% [markdown]
# A figure rests on the largest profile that has records:

# %%
#| export
def largest(
    frame: pd.DataFrame,  # As `records` gives it
) -> pd.DataFrame:  # The rows of one profile
    "Rows of the largest profile that has any: 'paper', else 'cpu', else 'smoke', else what there is."
    if "profile" not in frame.columns:
        raise ValueError("`frame` must come from `records`: it has no column `profile`")
    present = [p for p in reversed(PROFILES) if (frame["profile"] == p).any()]
    return frame[frame["profile"] == present[0]].reset_index(drop=True) if present else frame


# %%
recorded(walk, "cpu", seed=0)
test_eq(set(largest(records(walk)).profile), {"cpu"})
largest(records(walk)).groupby("part").distance.mean()

# %% [markdown]
# Filters are refused when they name no parameter, like everything else that is misspelt.

# %%
with expect_fail(TypeError, "did you mean 'steps'"):
    records(walk, stepz=10)
with expect_fail(ValueError, "`profile` is unknown"):
    records(walk, profile="papper")
test_eq(len(records(walk, steps=3)), 0)

# %%
#| hide
_tmp.cleanup()
for k in ("ROBUSTLIT_RUNS", "ROBUSTLIT_RESULTS"):
    os.environ.pop(k)
