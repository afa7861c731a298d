"What the page of promises says: its own tests, and that every test which it names is there."

import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustlit.data import Batches, load
from robustlit.records import experiment, key_of, recorded, records
from robustlit.store import Store
from robustlit.training import Learner, set_seed

ROOT = Path(__file__).parents[1]
DIGITS = load("digits").subset(200)


@experiment(version=1, id="local/drift", smoke=dict(steps=3))
def drift(seed: int = 0, steps: int = 3) -> pd.DataFrame:
    "A random walk."
    walk = np.random.default_rng(seed).normal(size=steps).cumsum()
    return pd.DataFrame(dict(step=range(steps), place=walk))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ROBUSTLIT_RESULTS", str(tmp_path / "results"))
    return tmp_path


def trained(seed, threads=1):
    before, order = torch.get_num_threads(), set_seed(seed)
    layers = [
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(288, 10),
    ]
    net = nn.Sequential(*layers)
    torch.set_num_threads(threads)
    try:
        batches = Batches(DIGITS.x_train, DIGITS.y_train, 50, generator=order)
        Learner(net, torch.optim.Adam(net.parameters(), lr=0.01)).fit(2, batches)
    finally:
        torch.set_num_threads(before)
    return torch.cat([v.detach().double().flatten() for v in net.state_dict().values()])


def test_the_same_seed_gives_the_same_bits():
    first, second, other = trained(0), trained(0), trained(1)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_threads_change_rounding_alone():
    one, two = trained(0, 1), trained(0, 2)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            recorded(drift, seed=threads)
            assert Store().find("local/drift", key_of(drift, seed=threads)).about["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_a_copy_of_the_folders_is_a_backup(place, monkeypatch):
    for seed in range(3):
        recorded(drift, seed=seed)
    was = records(drift)
    shutil.copytree(place / "runs", place / "kept")
    shutil.rmtree(place / "runs")
    assert not len(records(drift))
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(place / "kept"))
    pd.testing.assert_frame_equal(records(drift), was)


def named():
    page = nbformat.read(ROOT / "nbs" / "evidence" / "05_promises.ipynb", 4)
    text = "\n".join(c.source for c in page.cells if c.cell_type == "markdown")
    return re.findall(r"`(tests/\w+\.py)::(\w+)`", text)


@pytest.mark.parametrize("path,test", named())
def test_a_promise_names_a_test_that_is_there(path, test):
    assert re.search(rf"^def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.M)


def test_every_promise_has_a_test():
    page = nbformat.read(ROOT / "nbs" / "evidence" / "05_promises.ipynb", 4)
    tables = [t for c in page.cells for t in re.findall(r"^\| promise \| test \|\n.*\n((?:\|.*\n?)+)", c.source, re.M)]
    rows = [r for t in tables for r in t.splitlines()]
    assert len(rows) == len(named()) > 20
