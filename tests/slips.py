"""Slips: one argument of a valid call is replaced by a value known to be bad; the call must refuse it and name the argument.

`python tests/slips.py --inputs 20000` draws them with a new seed and prints a table by module; tests/test_slips.py draws 2,000.
What makes a value bad is said by `Argument.slips` alone, from the annotation and the comment beside it, never from the code."""

import argparse
import ast
import contextlib
import functools
import inspect
import io
import math
import numbers
import random
import re
import shutil
import signal
import sys
import tempfile
import types
import typing
import warnings
from collections import Counter, abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import test_arguments as table
import torch
from hypothesis import strategies as st

from robustlit import checks, records, store

ANSWERS = ("clear", "unclear", "silent", "taken as true")
DOCUMENTED = (TypeError, ValueError, FileNotFoundError)
PATIENCE = 5  # seconds of processor time; a call that takes longer has begun to work


# What an annotation takes, read here a second time: a value is bad only where this says that it cannot be meant


def alternatives(annotation, specs=()):
    "What may stand there, one by one: (type, its specs)."
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, typing.ForwardRef):
        yield from alternatives(eval(annotation.__forward_arg__, {}, checks._Late()), specs)
    elif origin is typing.Annotated:
        yield from alternatives(args[0], (*specs, *(a for a in args[1:] if isinstance(a, checks.Spec))))
    elif origin in (typing.Union, types.UnionType):
        for a in args:
            yield from alternatives(a, specs)
    else:
        yield annotation, specs


def takes(annotation, value) -> bool:
    "Whether a value is of a type that the annotation names; True where the annotation leaves it open."
    return any(takes_one(kind, value) for kind, _ in alternatives(annotation))


def takes_one(kind, value) -> bool:
    base, inner = typing.get_origin(kind) or kind, [a for a in typing.get_args(kind) if a is not Ellipsis]
    if base is typing.Literal:
        return any(type(value) is type(a) and value == a for a in inner)
    if base in (int, float):
        number = numbers.Integral if base is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if base in (None, type(None)) or base is Callable:
        return callable(value) if base is Callable else value is None
    if base in (dict, Mapping):
        return isinstance(value, Mapping)
    if base in (list, tuple, abc.Sequence, abc.Collection, abc.Iterable):
        listed = isinstance(value, list | tuple) and inner
        fit = not listed or all(any(takes(a, v) for a in inner) for v in value)
        return hasattr(value, "__iter__") and not isinstance(value, str | bytes) and fit
    open_ = not isinstance(base, type) or getattr(base, "_is_protocol", False) or base in (object, inspect._empty)
    return open_ or isinstance(value, base)


# Numbers out of range, names misspelt, arrays of another shape, tables without their columns

LIMITS = {"at_least": (True, False), "above": (True, True), "at_most": (False, False), "below": (False, True)}
NUMBER_OF = re.compile(r"^(Number of|How many|Images|Steps|Passes)\b")
SHARE_OF = re.compile(r"^(Share|Probability)\b|\bfrom 0 to 1\b")
SHAPE = re.compile(r"\(((?:[\w*]+, ?)+[\w*]*)\)")
MADE_ELSEWHERE = re.compile(r"^(From `|Records|Tidy rows|Rows)")


def beyond(limit: float, low: bool, limit_too: bool, whole: bool):
    "Numbers on the wrong side of a limit."
    way, number = (
        (-math.inf if low else math.inf),
        st.integers if whole else functools.partial(st.floats, allow_infinity=False),
    )
    first = limit if limit_too else limit + (-1 if low else 1) if whole else math.nextafter(limit, way)
    first = (math.floor(first) if low else math.ceil(first)) if whole else first
    return number(max_value=first) if low else number(min_value=first)


def out_of_range(text: str, whole: bool):
    "Numbers that a range refuses, as the annotation writes it: 'between(0, 1)'."
    name, _, limits = text.rstrip(")").partition("(")
    if name == "between":
        low, high = map(float, limits.split(","))
        return beyond(low, True, False, whole) | beyond(high, False, False, whole)
    return beyond(float(limits), *LIMITS[name], whole) if name in LIMITS else None


def numbers_refused(annotation, comment: str) -> list:
    "Strategies of numbers that are out of range, by the annotation or, where it says nothing, by the comment."
    kinds = [(kind, specs) for kind, specs in alternatives(annotation) if kind in (int, float)]
    if len(kinds) != 1:
        return []
    [(kind, specs)] = kinds
    found = [out_of_range(s.text, kind is int) for s in specs]
    found = [f for f in found if f is not None] + [st.sampled_from(s.bad) for s in specs if s.raises and s.bad]
    text = "between(0, 1)" if SHARE_OF.search(comment) else "at_least(0)" if NUMBER_OF.search(comment) else ""
    return found or ([out_of_range(text, kind is int)] if text else [])


def elements_refused(kinds: set) -> dict:
    "Lists of one number that is out of range or NaN, where the annotation is a list of numbers."
    found = {}
    for kind in kinds if len(kinds - {None, type(None)}) == 1 else ():
        inner = [a for a in typing.get_args(kind) if a is not Ellipsis]
        if typing.get_origin(kind) in (list, tuple, abc.Sequence, abc.Collection, abc.Iterable) and len(inner) == 1:
            for strategy in numbers_refused(*inner, ""):
                found["range"] = strategy.map(lambda v: [v])
            if any(k is float for k, _ in alternatives(*inner)):
                found["NaN"] = st.just([math.nan])
    return found


def misspelt(annotation) -> list:
    "Names that are not known: a letter too many or too few, other capitals, blanks, nothing."
    named = [(k, s) for k, s in alternatives(annotation) if k is str or typing.get_origin(k) is typing.Literal]
    lists = [s.text.removeprefix("one_of(")[:-1] for _, specs in named for s in specs if s.text.startswith("one_of(")]
    if len(lists) != sum(k is str for k, _ in named) or not named:
        return []
    known = [c for text in lists for c in ast.literal_eval(f"[{text}]")]
    known += [c for k, _ in named if k is not str for c in typing.get_args(k)]
    near = lambda c: (c + c[-1:], c[1:], c.upper(), f" {c}", f"{c} ", "", "no such name")
    return [t for c in known if isinstance(c, str) for t in near(c) if t not in known]


def misshapen(annotation, comment: str, valid, beside: dict) -> list:
    "Arrays of other dimensions than the annotation or the comment says; labels and pixels that cannot be any."
    said = [s.text for _, specs in alternatives(annotation) for s in specs]
    images, labels = "check_with(check_images)" in said, "check_with(_class_numbers)" in said
    labels |= bool(re.match(r"(Their )?[Ll]abels\b(?!.*targets)", comment))
    dims = {len(s.strip(", ").split(",")) for s in SHAPE.findall(comment)} | (
        {4} if images else {1} if labels else set()
    )
    found = [v for v in (*valid[:1], valid[None]) if dims and v.ndim not in dims] if valid.ndim else []
    if labels:
        found += [valid + 0.5, valid - 9]
        found += [valid[:-1]] * any(
            torch.is_tensor(x) and x.ndim == 4 and len(x) == len(valid) for x in beside.values()
        )
    if (images or "in [0, 1]" in comment) and valid.is_floating_point():
        found += [valid + 1, valid * math.nan]
    if images or re.search("in \\[0, 1\\]|uint8", comment):
        found += [valid.long(), valid > 0]
    return found


JUNK = {  # each is bad where the annotation takes no value of its type
    "type": [0, -1, 0.5, "no such thing", b"bytes", object(), {}, [None], [object()], pd.DataFrame(), torch.zeros(3)],
    "None": [None],
    "boolean as number": [True, False],
    "string as boolean": ["False", "yes", 1, 0.0],
    "empty": ["", [], ()],
}


@dataclass(frozen=True, eq=False)
class Argument:
    "One argument of a function, and its value in a valid call."

    fn: Callable
    name: str
    annotation: object
    comment: str

    @functools.cached_property
    def slips(self) -> dict:
        "Kind of slip to a strategy of values that are bad for this argument."
        valid, kinds = table.CALLS[self.fn][self.name], {kind for kind, _ in alternatives(self.annotation)}
        specs = [s for _, found in alternatives(self.annotation) for s in found]
        found = {kind: [v for v in values if not takes(self.annotation, v)] for kind, values in JUNK.items()}
        if not kinds & {int, float}:
            found["type"] += found.pop("boolean as number")
        if bool not in kinds:
            found["type"] += found.pop("string as boolean")
        found["empty"] += [v for v in ([], (), {}) if checks.not_empty in specs and takes(self.annotation, v)]
        if float in kinds:
            found["NaN"] = [math.nan]
            found["infinity"] = [math.inf, -math.inf] * (checks.or_infinite not in specs and "inf" not in self.comment)
        found["choice"] = misspelt(self.annotation)
        if isinstance(valid, torch.Tensor | np.ndarray):
            found["shape"] = misshapen(self.annotation, self.comment, valid, table.CALLS[self.fn])
        columns = any(s.text.startswith("with_columns") and "empty=True" not in s.text for s in specs)
        if isinstance(valid, pd.DataFrame) and (columns or MADE_ELSEWHERE.search(self.comment)):
            found["shape"] = [valid.rename(columns=lambda c: f"no {c}"), *[pd.DataFrame()] * columns]
        found = {kind: st.sampled_from(values) for kind, values in found.items() if values}
        for strategy in numbers_refused(self.annotation, self.comment):
            found["range"] = found["range"] | strategy if "range" in found else strategy
        return found | elements_refused(kinds)

    def __str__(self):
        return f"{table.label(self.fn)}({self.name})"


def comments(fn: Callable) -> dict:
    "The comment beside each parameter, or each field of a dataclass."
    source = inspect.getsource(inspect.unwrap(fn))
    found = re.findall(r"^\s*\**(\w+)\b[^#\n]*  # (.*)$", source, re.MULTILINE)
    return dict(reversed(found))


@functools.cache
def arguments() -> list:
    "Every argument of every public function that has a valid call, of which something is known to be bad."
    found = []
    for fn, call in table.CALLS.items():
        said = comments(fn)
        for p in checks._written(fn):
            if p.name in call and p.name not in table.FREE:
                found.append(Argument(fn, p.name, p.annotation, said.get(p.name, "")))
    return [a for a in found if a.slips]


def is_method(fn) -> bool:
    return inspect.ismethod(fn) or "." in fn.__qualname__


# A slip and the answer to it


@dataclass(frozen=True)
class Slip:
    "An argument, and what it is given instead."

    argument: Argument
    kind: str
    value: object

    def __str__(self):
        shown = "" if isinstance(self.value, torch.Tensor | np.ndarray | pd.DataFrame) else repr(self.value)[:60]
        return f"{self.argument} {self.kind}: {type(self.value).__name__} {shown}"


@st.composite
def slips(draw, methods: bool = False):
    "A kind of slip, an argument that it may befall, a value of that kind."
    among = [a for a in arguments() if is_method(a.fn) or not methods]
    kind = draw(st.sampled_from(sorted({kind for a in among for kind in a.slips})))
    argument = draw(st.sampled_from([a for a in among if kind in a.slips]))
    return Slip(argument, kind, draw(argument.slips[kind]))


class TooLong(BaseException):
    "The call has begun to work."


def _stop(*about):
    raise TooLong


def answer(slip: Slip) -> tuple:
    "How a call answers: one of ANSWERS, and the words."
    fn, name = slip.argument.fn, slip.argument.name
    named = {name}
    if slip.kind == "shape":  # of two arguments that do not match, either may be named; but a network is not to blame
        named |= {*inspect.signature(fn).parameters} - {"model"}
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            table.called(fn, table.CALLS[fn] | {name: slip.value})
    except Exception as e:
        words = f"{type(e).__name__}: {e}"
        clear = isinstance(e, DOCUMENTED) and any(f"`{n}`" in str(e) for n in named)
        return "clear" if clear else "unclear", words
    except TooLong:
        return "silent", f"began to work and was stopped after {PATIENCE} s"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        plt.close("all")
    return "taken as true" if slip.kind == "string as boolean" else "silent", "accepted"


@contextlib.contextmanager
def workplace():
    "An empty folder that holds what the valid calls look for."
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("RUNS", "RESULTS", "FIGURES"):
            patch.setenv(f"ROBUSTLIT_{name}", str(Path(folder) / name.lower()))
        (Path(folder) / "work").mkdir()
        patch.chdir(Path(folder) / "work")
        kept = store.Store(Path(folder) / "made")
        with contextlib.redirect_stdout(io.StringIO()):
            records.recorded(table.one_row, store=kept)
        shutil.copy(kept.run_paths("local/one_row")[0], "made.parquet")
        nbformat.write(table.NOTEBOOK, "one.ipynb")
        for name in ("images.txt", "train_test_split.txt"):
            Path(name).touch()
        yield


def try_many(inputs: int, seed: int, methods: bool = False) -> list:
    "(slip, answer, words) of so many inputs, of everything or of methods alone."
    found = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=inputs, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(slips(methods))
    def collect(slip):
        found.append((slip, *answer(slip)))

    with workplace():
        collect()
    return found


def counted(found: list) -> pd.DataFrame:
    "How many of each answer, by module, and in all."
    module = lambda fn: fn.__module__.removeprefix("robustlit.")
    counts = Counter((module(slip.argument.fn), a) for slip, a, _ in found)
    modules = sorted({m for m, _ in counts})
    rows = pd.DataFrame([[counts[m, a] for a in ANSWERS] for m in modules], index=modules, columns=list(ANSWERS))
    return pd.concat([rows, rows.sum().to_frame("all").T]).rename_axis("module")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--show", type=int, default=40, help="how many of the arguments that answer badly are named")
    parser.add_argument("--methods", action="store_true", help="of public methods alone")
    words = parser.parse_args(argv)
    print(f"seed {words.seed}")
    found = try_many(words.inputs, words.seed, words.methods)
    bad = {(str(slip.argument), slip.kind): (slip, a, said) for slip, a, said in found if a != "clear"}
    for slip, a, said in list(bad.values())[: words.show]:
        print(f"{a}: {slip}: {said[:200]}")
    print(counted(found).to_string())
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
