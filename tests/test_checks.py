"Checks: what an annotation demands, and that every public function refuses what its annotations rule out."

import importlib
import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Optional, TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from fastcore.docments import get_source
from torch import nn

from robustlit import checks
from robustlit.checks import (
    Batch,
    Count,
    CPUGenerator,
    Device,
    Generator,
    Images,
    Labels,
    Logits,
    PerImage,
    Pixels,
    Seed,
    Share,
    above,
    at_least,
    at_most,
    bad_values,
    below,
    between,
    check_of,
    check_values,
    check_with,
    checked,
    column_of,
    nearest,
    not_empty,
    one_of,
    shaped,
    with_columns,
    with_keys,
)

X, Y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])

DF = pd.DataFrame(dict(a=[1], b=[2]))


def even(value, name):
    if value % 2:
        raise ValueError(f"`{name}` must be even, got {value}")


# One annotation: what it takes, what is of another kind, what is a wrong value

ANNOTATIONS = [
    (int, [0, -3, np.int64(2)], [True, 1.5, 1.0, "1", None, [1]], []),
    (float, [0.5, 1, np.float32(0.1)], [True, "0.5", None, 1j], [math.nan, math.inf]),
    (bool, [True, False, np.bool_(1)], [1, 0, "False", None], []),
    (str, ["a", ""], [1, b"a", None], []),
    (None, [None], [0, ""], []),
    (Callable, [len, nn.Flatten()], ["len", 1, None], []),
    (Callable[[int], int], [abs], [3], []),
    (dict, [{}, nn.Flatten().state_dict()], [[1], "a", None], []),
    (Mapping[str, int], [dict(a=1)], [3], []),
    (nn.Module, [nn.Flatten()], [nn.Flatten, 3, None], []),
    (int | None, [None, 3], [1.5, "3"], []),
    (Optional[int], [None, 3], [1.5, "3"], []),
    (int | str, [1, "a"], [1.5, None], []),
    (list[int], [[], [1, 2], (1,), np.arange(3), torch.arange(3), range(2)], [3, "12", None, [1.5], ["1"], [None]], []),
    (tuple[float, ...], [(), (1, 0.5), [2]], [0.5, (True,), ("a",)], [(math.nan,), np.array([0.1, math.inf])]),
    (tuple[int, str], [(1, "a")], [(1.5, "a")], [(1,), (1, "a", "b")]),
    (Sequence, [[1], "a".split(), np.arange(2)], [3, "a", {1: 2}, iter([1])], []),
    (Collection[str], [["a"], {"a"}], ["a", iter("a"), {1}], []),
    (Iterable[float], [[0.5], (v for v in "ab"), {0.5}], [3, "ab", None, ["0.5"]], []),
    (Literal["left", "right"], ["left"], [1, None], ["lift"]),
    (Literal[1, 2], [2], ["1", True], [3]),
    (Annotated[int, at_least(1)], [1, 9], [True, 1.5], [0]),
    (Annotated[float, at_most(2)], [2, -1.0], ["1"], [2.1]),
    (Annotated[float, above(0)], [0.1], ["1"], [0, -1]),
    (Annotated[float, below(1)], [0.9], ["1"], [1, 1.5]),
    (Annotated[float, above(0), at_most(1)], [1, 0.1], [True], [0, 1.1]),
    (Annotated[int, between(1, 5)], [1, 5], [2.0], [0, 6]),
    (Annotated[str, one_of(["cat", "dog"])], ["cat"], [1], ["cta"]),
    (Annotated[Any, one_of(["cat", 1])], ["cat", 1], [], ["dog", 2]),
    (Annotated[list[int], not_empty], [[1]], [3, ["a"]], [[], ()]),
    (Annotated[int, check_with(even, 3)], [2], ["2"], [3]),
    (Annotated[int | None, at_least(1)], [None, 1], ["1"], [0]),
    (Annotated[int, at_least(1)] | Annotated[str, one_of(["all"])], [1, "all"], [1.5, None], [0, "al"]),
    (Annotated[int, "a remark"], [1], ["1"], []),
    (Count, [1], [True, 1.5], [0]),
    (Seed, [0, 2**32 - 1], [1.5, "0", None], [-1, 2**32]),
    (Share, [0, 0.5, 1], ["half"], [-0.1, 1.1, math.nan]),
    (Images, [X, X[:0]], [X.numpy(), X.byte(), 3], [X + 1, X * math.nan, X[0]]),
    (Pixels, [X.byte()], [X, 3], [X[0].byte()]),
    (Images | Pixels, [X, X.byte()], [X.long(), 3], [X + 1, X[0]]),
    (Labels, [Y, Y[:0]], [Y.float(), [0, 1]], [Y - 1, Y[None]]),
    (Batch, [X, X + 1, X[:0]], [X.byte(), X.numpy(), 3], [X[0], X[None]]),
    (Logits, [X[:, 0, 0], X[:0, 0, 0]], [[[0.5]], None], [X[:, 0, 0, 0], X]),
    (PerImage, [Y, X[:, 0, 0, 0]], [[0, 1], None], [X, Y[0]]),
    (Annotated[np.ndarray, shaped("3, n", "n")], [np.ones((3, 1)), np.ones(2)], [[1]], [np.ones((2, 1)), np.array(1)]),
    (Annotated[pd.DataFrame, with_columns("a")], [DF, DF[:0]], [[1]], [pd.DataFrame(), DF[["b"]]]),
    (Annotated[pd.DataFrame, with_columns("a", empty=True)], [DF, pd.DataFrame()], ["a"], [DF[["b"]]]),
    (Generator, [torch.Generator()], [0, None], []),
    (CPUGenerator | None, [None, torch.Generator()], [0, "seed"], []),
    (Annotated[dict, with_keys("a", "b")], [dict(a=1, b=2, c=3)], [["a", "b"], "ab"], [{}, dict(a=1)]),
    (Device, ["cpu", torch.device("cpu")], [0, None], ["gpu", "auto", "cuda:99", torch.device("meta")]),
    (Device | Annotated[str, one_of(["auto"])], ["cpu", "auto"], [0, None], ["gpu", "Auto"]),
]


@pytest.mark.parametrize(
    "annotation, good, wrong_kind, wrong_value", ANNOTATIONS, ids=[str(a[0])[:60] for a in ANNOTATIONS]
)
def test_an_annotation_says_what_is_taken(annotation, good, wrong_kind, wrong_value):
    check = check_of(annotation)
    for value in good:
        check(value, "it")
    for values, error in ((wrong_kind, TypeError), (wrong_value, ValueError)):
        for value in values:
            with pytest.raises(error) as e:
                check(value, "it")
            assert "`it`" in str(e.value) and type(e.value) is error, value
    known = check.bad()
    assert known or annotation is CPUGenerator
    for value in known:
        with pytest.raises((TypeError, ValueError), match="`it`"):
            check(value, "it")


def test_above_a_class_making_and_public_methods_are_checked():
    @checked
    class Box:
        def __init__(self, size: Count):
            self.size = size

        def __call__(self, n: Count):
            return self._put(n)

        def put(self, n: Count = 1, *more: Count, why: str = "") -> int:
            return n + sum(more)

        def take(self, anything):
            return anything

        def forward(self, n: Count):
            return n

        def _put(self, n: Count):
            return n

    class Chest(Box):
        def put(self, n: Count = 1):
            return n

    box = Box(2)
    assert (
        box.put() == 1 and box.put(2, 3, why="room") == 5 and box(3) == 3 and Box.put.__qualname__.endswith("Box.put")
    )
    assert box.take(None) is None and box.forward(0) == 0 and box._put(0) == 0, "says nothing, is torch's, is nobody's"
    for call in (lambda: Box(0), lambda: box(0), lambda: box.put(0), lambda: box.put(1, 0), lambda: Chest(0)):
        with pytest.raises(ValueError, match="`(size|n|more)` must be a whole number >= 1, got 0"):
            call()
    with pytest.raises(TypeError, match="`why` must be a string"):
        box.put(why=1)
    assert Chest(2).put(0) == 0, "its own methods are its own affair"


@pytest.mark.parametrize(
    "annotation", [Any, object, inspect.Parameter.empty, TypeVar("T"), int | Any, Annotated[Any, "x"]]
)
def test_what_says_nothing_is_not_checked(annotation):
    assert check_of(annotation) is None


@pytest.mark.parametrize(
    "annotation, value, message",
    [
        (Count, 0, "`it` must be a whole number >= 1, got 0"),
        (Annotated[float, above(0), at_most(1)], 2, "`it` must be a finite number > 0 and <= 1, got 2"),
        (bool, "False", "`it` must be True or False, got 'False'"),
        (nn.Module, 3, "`it` must be a torch.nn.Module, got 3"),
        (pd.DataFrame, [1] * 100, "`it` must be a pandas.DataFrame, got list"),
        (int | None, "a", "`it` must be a whole number or None, got 'a'"),
        (list[Share], [0.5, 2], "each of `it` must be a finite number from 0 to 1, got 2"),
        (Literal["left", "right"], "lift", "`it` is unknown: 'lift'; did you mean 'left'? Known: left, right"),
        (Iterable[int], X, "each of `it` must be a whole number, got list"),
        (Annotated[list, not_empty], [], "`it` must be a list that is not empty, got []"),
    ],
)
def test_messages_say_what_was_expected_and_what_came(annotation, value, message):
    with pytest.raises((TypeError, ValueError)) as e:
        check_of(annotation)(value, "it")
    assert str(e.value) == message


def test_what_arguments_ask_of_each_other():
    @checked
    def draw(df: pd.DataFrame, y: Annotated[str, column_of("df")] = "a", by: Annotated[list, column_of("df")] = ()):
        return y

    @checked
    def right(x: Images, y: Labels, y_more: Labels | None = None):
        return len(y)

    assert (
        draw(DF) == draw(DF, by=["a", "b"]) == draw(pd.DataFrame()) == "a"
        and draw(DF, "b") == draw(y="b", df=DF) == "b"
    )
    for call in (lambda: draw(DF, "c"), lambda: draw(y="c", df=DF), lambda: draw(DF[["b"]])):
        with pytest.raises(ValueError, match="`y` is unknown: '[ac]'; "):
            call()
    with pytest.raises(ValueError, match="`by` is unknown: 'c'"):
        draw(DF, by=["a", "c"])
    assert right(X, Y) == right(y=Y, x=X) == right(X, Y, Y[:1]) == 4
    for call in (lambda: right(X, Y[:3]), lambda: right(y=Y, x=X[:3]), lambda: right(X[:0], Y)):
        with pytest.raises(ValueError, match="`y` must hold [0-9] labels, one an image, got [0-9]"):
            call()


def test_an_iterator_is_not_used_up():
    numbers = iter([1, 2])
    check_of(Iterable[int])(numbers, "it")
    assert list(numbers) == [1, 2]


def test_a_table_that_grows_is_looked_up_anew():
    table = dict(a=1)
    check = check_of(Annotated[str, one_of(table)])
    table["b"] = 2
    check("b", "it")


def test_nearest_searches_one_thing_and_shows_another():
    assert nearest("pgd", dict(pgd="sleep/attacks", blur="sleep/blur")).startswith("did you mean 'sleep/attacks'? ")
    assert nearest("zzz", ["a"]) == "Known: a" and nearest("zzz", []) == "Known: none"


# The decorator


@checked
def mix(a: Count, /, b: float = 0.5, *rest: int, c: bool = False, **more: Share):
    "Everything at once."
    return a, b, rest, c, more


def test_the_decorated_function_does_what_it_did():
    assert mix(1) == (1, 0.5, (), False, {}) and mix(2, 1, 3, 4, c=True, d=0.1) == (2, 1, (3, 4), True, dict(d=0.1))
    assert mix.__doc__ == "Everything at once." and mix.__name__ == "mix"
    assert str(inspect.signature(mix)) == "(a: int, /, b: float = 0.5, *rest: int, c: bool = False, **more: float)"
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        mix()


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: mix(0), "a"),
        (lambda: mix(1, "x"), "b"),
        (lambda: mix(1, b=True), "b"),
        (lambda: mix(1, 2, 3, 4.5), "rest"),
        (lambda: mix(1, c=1), "c"),
        (lambda: mix(1, d=2), "d"),
    ],
)
def test_each_way_to_give_an_argument_is_checked(call, name):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        call()


def test_methods_and_classes():
    @checked
    @dataclass(frozen=True)
    class Point:
        x: int
        y: Share = 0.0

        @checked
        def move(self, by: int) -> "Point":
            return Point(self.x + by, self.y)

        @classmethod
        @checked
        def at(cls, x: int):
            return cls(x)

        @staticmethod
        @checked
        def half(x: float):
            return x / 2

    assert Point.at(1).move(2) == Point(3) and Point.half(1) == 0.5 and isinstance(Point(1), Point)
    assert list(inspect.signature(Point).parameters) == ["x", "y"]
    bad = (lambda: Point("1"), lambda: Point(1).move(0.5), lambda: Point.at(None), lambda: Point.half("1"))
    for call in (*bad, lambda: Point(1, y=2)):
        with pytest.raises((TypeError, ValueError), match="`(x|y|by)` must be"):
            call()


POSTPONED = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated
from robustlit.checks import at_least, checked
low = at_least(2)

@checked
def f(n: Annotated[int, low], later: Later | None = None):
    return n

@checked
@dataclass
class Later:
    n: int

def inner(top):
    @checked
    def g(n: Annotated[int, top]):
        return n, top.text
    return g
"""


def test_postponed_annotations_are_found_where_they_were_written(tmp_path, monkeypatch):
    (tmp_path / "postponed.py").write_text(POSTPONED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("postponed")
    assert module.f(2, module.Later(1)) == 2 and module.inner(at_most(3))(3) == (3, "at_most(3)")
    for call in (
        lambda: module.f(1),
        lambda: module.f(2, 3),
        lambda: module.Later("1"),
        lambda: module.inner(at_most(3))(4),
    ):
        with pytest.raises((TypeError, ValueError), match="`(n|later)` must be"):
            call()


def test_annotations_are_read_once(monkeypatch):
    seen = []
    monkeypatch.setattr(checks, "check_of", lambda a, real=check_of: seen.append(a) or real(a))

    @checked
    def f(n: int, m: str = ""): ...

    assert not seen
    f(1), f(2, "a")
    assert seen == [int, str]


def test_an_argument_costs_microseconds():
    import timeit

    @checked
    def f(a: Count, b: Share, c: bool, d: Annotated[str, one_of(("x", "y"))], e: CPUGenerator | None): ...

    run = partial(f, 3, 0.5, True, "x", torch.Generator())
    assert min(timeit.repeat(run, number=1000, repeat=5)) / 1000 / 5 < 20e-6


def test_values_are_checked_without_a_call():
    def f(n: Count, share: Share = 0.5, free=None): ...

    check_values(f, dict(n=1, free=object()))
    with pytest.raises(ValueError, match="`n` must be a whole number >= 1"):
        check_values(f, dict(n=0))
    with pytest.raises(TypeError, match="f has no parameter `shar`; did you mean 'share'"):
        check_values(f, dict(shar=1))
    bad = bad_values(f)
    assert {0, True} <= set(bad["n"]) and -1 in bad["share"] and bad["free"] == []


def test_torch_is_not_imported():
    code = "import sys, robustlit.checks as c; c.check_of(c.Count)(1, 'n'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
    with pytest.raises(AttributeError, match="has no attribute 'Image'"):
        checks.Image  # noqa: B018


def test_documentation_finds_the_source_of_a_checked_method():
    @checked
    class Doubled:
        def __call__(self, n: int) -> int:
            return 2 * n

    assert get_source(Doubled()).strip().startswith("def __call__(self, n: int)")
