"Paper 3: calibration, the experiments at their smallest size, their claims on made-up rows, and the suite by its name."

import pytest
import torch
from torch import nn

from robustlit.filtering.filter_map import filter_map
from robustlit.stressors import SUITES, _suite, stress, suite_names


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 4


@pytest.fixture(scope="module")
def model(pair):
    "A small network that has learned forty images by heart."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        opt.zero_grad()
        nn.functional.cross_entropy(net(pair[0]), pair[1]).backward()
        opt.step()
    return net.eval()


# ---------------------------------------------------------------- the suite by name


def test_filters_are_a_suite_by_name_and_leave_the_network_as_it_was(model, pair):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = stress(model, pair, "filters")
    mapped = filter_map(model, pair, thresholds=9)
    assert rows.accuracy.tolist() == mapped.accuracy.tolist()
    assert rows.strength[1:].between(0, 1).all() and set(rows.unit[1:]) == {"share of the range"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_filters_are_no_part_of_all(model, pair):
    assert "filters" in suite_names()
    assert {s.suite for s in _suite("all", model, pair[0])} == {*SUITES}


def test_an_unknown_suite_is_told_with_the_nearest(model, pair):
    with pytest.raises(ValueError, match="did you mean 'filters'"):
        stress(model, pair, "filter")
