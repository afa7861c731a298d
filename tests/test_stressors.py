"Stress: what it refuses, what it leaves alone, and whether its numbers are what one gets by hand."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustlit.attacks import attack_images
from robustlit.corruptions import CORRUPTIONS, corrupt
from robustlit.data import Batches, as_images, load
from robustlit.evaluation import logits_of
from robustlit.faults import faulty
from robustlit.filtering.filters import filtered
from robustlit.report import named_model, report_page, write_report
from robustlit.stressors import (
    SUITES,
    Stressor,
    corruption_error,
    eps_area,
    images_and_labels,
    in_schema,
    model_stressor,
    restored,
    stress,
    under,
)
from robustlit.training import Learner, set_seed


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.fixture(scope="module")
def net(data):
    set_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
    )
    Learner(net, torch.optim.Adam(net.parameters(), lr=0.01)).fit(8, Batches(data.x_train, data.y_train, 100))
    return net.eval()


@pytest.fixture
def pair(data):
    return as_images(data.x_test[:60]), data.y_test[:60]


def few(suite, model, x):
    "Every stressor of a suite, at its first strength."
    return list({s.name: s for s in reversed(SUITES[suite](model, x))}.values())


# What is measured


def test_accuracy_by_hand(net, pair):
    x, y = pair
    rows = stress(net, pair, "noise_blur")
    assert rows.accuracy[0] == pytest.approx(100 * (net(x).argmax(1) == y).float().mean().item())
    assert (rows.low <= rows.accuracy).all() and (rows.accuracy <= rows.high).all() and (rows.n == 60).all()


def test_corruption_by_hand(net, pair):
    x, y = pair
    rows = stress(net, pair, [s for s in SUITES["corruptions"](net, x) if s.name == "fog"], seed=3)
    for severity in (1, 5):
        shown = corrupt(x, "fog", severity, generator=torch.Generator().manual_seed(3))
        hand = 100 * (net(shown).argmax(1) == y).float().mean().item()
        assert rows.query("stressor == 'fog' and strength == @severity").accuracy.item() == pytest.approx(hand)


def test_attack_by_hand(net, pair):
    x, y = pair
    rows = stress(net, pair, [s for s in SUITES["linf"](net, x) if s.name == "fgsm"])
    made = attack_images(net, x, y, 0.1, "fgsm", generator=torch.Generator().manual_seed(0)).x
    assert rows.query("strength == 0.1").accuracy.item() == pytest.approx(
        100 * (net(made).argmax(1) == y).float().mean().item()
    )
    assert rows[rows.suite == "linf"].accuracy.is_monotonic_decreasing


def test_the_control_is_weaker_than_the_attack(net, pair):
    rows = stress(net, pair, "linf").pivot(index="stressor", columns="strength", values="accuracy")
    assert (rows.loc["random_sign"].dropna() >= rows.loc["pgd"].dropna()).all()
    assert rows.loc["pgd", 0.3] <= 10


def test_corruption_error_by_hand():
    row = lambda suite, name, s, accuracy: dict(suite=suite, stressor=name, strength=s, accuracy=accuracy)
    make = lambda clean, fog, snow: pd.DataFrame(
        [row("clean", "clean", 0, clean)]
        + [row("corruptions", "fog", s, fog) for s in range(1, 6)]
        + [row("corruptions", "snow", s, snow) for s in range(1, 6)]
    )
    ours, base = make(90, 60, 80), make(80, 50, 60)
    table = corruption_error(ours, base)
    assert table.loc["fog"].tolist() == pytest.approx([100 * 40 / 50, 100 * 30 / 30])
    assert table.loc["mean", "error"] == pytest.approx((80 + 50) / 2)
    assert corruption_error(ours).loc["fog"].tolist() == pytest.approx([40, 30])


def test_area_of_a_perfect_and_of_a_broken_classifier():
    eps = [0, 1e-4, 1e-3, 1e-2, 0.1, 1.0]
    assert eps_area(eps, [100] * 6) == pytest.approx(dict(log=1, raw=1))
    assert eps_area(eps, [0.01, 0.005, 0, 0, 0, 0])["log"] == pytest.approx(0)
    drop = eps_area(eps, [100, 100, 100, 100, 0, 0])["log"]
    edges = np.log([0.9e-4, 1e-2, 0.1, 1.0])
    assert drop == pytest.approx(((edges[1] - edges[0]) + (edges[2] - edges[1]) / 2) / (edges[3] - edges[0]))


@pytest.mark.parametrize(
    "eps, accuracy",
    [([0, 0.1], [90, 80]), ([0.2, 0.1], [90, 80]), ([0.1, 0.2], [90]), ([0.1, 0.2], [90, 101]), ([-1, 1], [1, 1])],
)
def test_area_of_what_is_no_curve(eps, accuracy):
    with pytest.raises(ValueError, match="must"):
        eps_area(eps, accuracy)


# Nothing is changed


@pytest.mark.parametrize("suite", list(SUITES))
def test_the_model_is_as_before(net, pair, suite):
    net.train()
    net[4].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes, dice = [m.training for m in net.modules()], torch.get_rng_state()
    grads = [p.grad.clone() for p in net.parameters()]
    stress(net, pair, few(suite, net, pair[0]))
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), dice)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads))
    net.eval()


def test_the_model_is_as_before_after_an_error(net, pair):
    def fails(model, x, y, seed):
        raise RuntimeError("planned")

    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="planned"):
        stress(net, pair, [Stressor("own", "fails", 1, "", fails)], strict=True)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.eval()


def test_same_seed_same_rows(net, pair):
    suite = few("linf", net, pair[0]) + few("corruptions", net, pair[0])[:4] + few("faults", net, pair[0])
    pd.testing.assert_frame_equal(stress(net, pair, suite, seed=5), stress(net, pair, suite, seed=5))


# What is refused


def bad_inputs():
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    nan = x.clone()
    nan[0, 0, 0, 0] = float("nan")
    return {
        "outside": ((x * 2, y), ValueError, r"\[0, 1\]"),
        "nan": ((nan, y), ValueError, "NaN"),
        "channels": ((x.repeat(1, 3, 1, 1), y), ValueError, "does not take images of shape"),
        "no batch": ((x[0], y[:1]), ValueError, "shape"),
        "labels above": ((x, y + 5), ValueError, "labels from 0 to 9"),
        "labels below": ((x, y - 1), ValueError, "labels from 0"),
        "labels float": ((x, y.float()), TypeError, "int64"),
        "too few labels": ((x, y[:5]), ValueError, "20 labels"),
        "empty": ((x[:0], y[:0]), ValueError, "at least one image"),
        "no pair": (x, TypeError, "pair"),
        "one-hot": ((x, torch.eye(10)[y]), ValueError, "argmax"),
    }


@pytest.mark.parametrize("what", list(bad_inputs()))
def test_bad_data(net, what):
    data, error, told = bad_inputs()[what]
    with pytest.raises(error, match=told):
        stress(net, data, "noise_blur")
    assert not net.training


class Gives(nn.Module):
    "A model that answers as told."

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


BAD_MODELS = {
    "probabilities": (lambda x: x.flatten(1)[:, :10].softmax(1), "drop the softmax"),
    "one number": (lambda x: x.sum((1, 2, 3)), "row of logits"),
    "too few rows": (lambda x: x.flatten(1)[:-1, :10], "row of logits"),
    "one column": (lambda x: x.flatten(1)[:, :1], "row of logits"),
    "nan": (lambda x: x.flatten(1)[:, :10] / 0 * 0, "finite"),
    "tuple": (lambda x: (x, x), r"out.mean"),
    "strings": (lambda x: ("a", x), "tuple"),
    "map": (lambda x: x, "row of logits"),
}


@pytest.mark.parametrize("what", list(BAD_MODELS))
def test_bad_model(pair, what):
    answer, told = BAD_MODELS[what]
    with pytest.raises(ValueError, match=told):
        stress(Gives(answer), pair, "noise_blur")


def test_not_a_module(pair):
    with pytest.raises(TypeError, match="wrap a function"):
        stress(lambda x: x, pair)


def test_unknown_suite(net, pair):
    with pytest.raises(ValueError, match="did you mean 'corruptions'"):
        stress(net, pair, "corruption")
    with pytest.raises(TypeError, match="Stressor"):
        stress(net, pair, ["fog"])


def test_negative_eps(net, pair):
    from robustlit.stressors import linf_suite

    with pytest.raises(ValueError, match="`eps`"):
        stress(net, pair, linf_suite(net, pair[0], eps=(-0.1,)))
    with pytest.raises(ValueError, match="attacks"):
        linf_suite(net, pair[0], attacks=("pgdd",))


def test_images_are_chosen_once(data):
    a, b = images_and_labels(data, 50), images_and_labels(data, 50)
    assert torch.equal(a[0], b[0]) and len(a[1]) == 50
    assert len(images_and_labels(data, 10**6)[1]) == len(data.y_test)


# Strangers' models


def test_a_resnet_on_colour(net):
    model = named_model("torchvision.models:resnet18")
    dice = torch.Generator().manual_seed(0)
    pair = torch.rand(8, 3, 32, 32, generator=dice), torch.randint(1000, (8,), generator=dice)
    suite = [s for name in SUITES for s in few(name, model, pair[0])[:3]]
    rows = stress(model, pair, suite)
    assert len(rows) == len(suite) + 1 and rows.accuracy.notna().all()
    assert {"bits of weights", "bits of batch_norm", "bits of activations"} <= set(rows.stressor)


class Classifier(nn.Module):
    "fit, predict and predict_proba, as in scikit-learn."

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return self.layers(x)

    def fit(self, x, y):
        opt = torch.optim.Adam(self.parameters(), lr=0.05)
        for _ in range(60):
            opt.zero_grad()
            nn.functional.cross_entropy(self(x), y).backward()
            opt.step()
        return self

    def predict_proba(self, x):
        return self(x).softmax(1).detach().numpy()

    def predict(self, x):
        return self.predict_proba(x).argmax(1)


def test_a_scikit_learn_style_model(data):
    torch.manual_seed(0)
    model = Classifier().fit(as_images(data.x_train), data.y_train)
    rows = stress(model, data, "noise_blur", images=100)
    assert rows.accuracy[0] > 85


def test_one_layer_has_nothing_to_flip_between(data):
    names = {s.name for s in SUITES["faults"](Classifier(), as_images(data.x_test[:5]))}
    assert names == {"bits of weights"}


def test_grey_images_get_the_corruptions_of_mnist(net, pair):
    names = {s.name for s in SUITES["corruptions"](net, pair[0])}
    assert names == set(CORRUPTIONS)
    assert len({s.name for s in SUITES["corruptions"](net, torch.rand(2, 3, 8, 8))}) == 19


# The report


def test_named_model_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange_net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(2, 2)\n\ndef needs(a):\n    return a\n\ndef number():\n    return 3\n"
    )
    assert isinstance(named_model("strange_net:make"), nn.Linear)
    for name, told in {
        "strange_net": "MODULE:FACTORY",
        "no_such_module_here:make": "importable",
        "strange_net:mke": "did you mean 'make'",
        "strange_net:needs": "without arguments",
        "strange_net:number": "Module",
    }.items():
        with pytest.raises(ValueError, match=told):
            named_model(name)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match="must be a state dict"):
        named_model("strange_net:make", tmp_path / "text.pt")
    torch.save(dict(other=torch.zeros(2)), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="does not fit"):
        named_model("strange_net:make", tmp_path / "w.pt")


def test_the_page_says_what_the_rows_say(net, pair):
    rows = stress(net, pair, "noise_blur")
    page = report_page("my <net>", rows)
    assert "my &lt;net&gt;" in page and f"{rows.accuracy[0]:.1f} %" in page and "upper bounds" in page
    assert all(f"<td>{a:.1f}</td>" in page for a in rows.accuracy[1:])


def test_nothing_is_written_for_a_bad_model(tmp_path, pair):
    with pytest.raises(ValueError):
        write_report(Gives(lambda x: x), pair, tmp_path / "page.html", "noise_blur")
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path):
    (tmp_path / "plain_net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    words = "stress plain_net:make --suite noise_blur --images 40 --no-audit --out page.html".split()
    call = [Path(sys.executable).with_name("robustlit"), *words]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "noise_blur" in done.stdout and (tmp_path / "page.html").exists()
    rows = pd.read_csv(tmp_path / "page.csv")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = images_and_labels(load("digits"), 40)
    assert rows.accuracy[0] == pytest.approx(100 * (logits_of(model, x).argmax(1) == y).float().mean().item())


# What changes the network


def kept(net):
    "All that must be as before, to the bit; the tensors themselves by their identity."
    tensors = [*net.named_parameters(), *net.named_buffers()]
    bits = {k: t.detach().numpy().tobytes() for k, t in tensors}
    flags = {k: (id(t), t.data_ptr(), t.requires_grad, id(t.grad)) for k, t in tensors}
    return bits, flags, [m.training for m in net.modules()]


def wreck(net):
    "Everything that one can do to a network without adding modules."
    net.train()
    net[1].weight.data.fill_(torch.nan)
    net[1].bias = nn.Parameter(torch.ones(32))
    net[2].running_mean += 1
    net[2].running_var = torch.ones(32)
    net[5].weight.data = torch.zeros(10, 32)
    net[5].bias.requires_grad_(False).grad = torch.ones(10)
    net.register_buffer("extra", torch.ones(1))
    net[2].weight = None


@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt])
def test_a_changed_network_is_put_back_however_it_ends(net, end):
    net[5].weight.requires_grad_(False)
    before = kept(net)
    try:
        with restored(net):
            wreck(net)
            assert kept(net) != before
            if end:
                raise end
    except (RuntimeError, KeyboardInterrupt) as e:
        assert type(e) is end
    assert kept(net) == before and not hasattr(net, "extra")
    net[5].weight.requires_grad_(True)


def test_ctrl_c_while_a_network_is_put_back(net, monkeypatch):
    before, calls, real = kept(net), [], torch.Tensor.copy_

    def copy_(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    with pytest.raises(KeyboardInterrupt), restored(net):
        wreck(net)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    assert len(calls) > 3 and kept(net) == before


def test_stress_puts_back_what_stressors_change(net, pair):
    before, seen = kept(net), []

    def prune(model, generator):
        model[1].weight.data *= torch.rand(model[1].weight.shape, generator=generator) > 0.5
        seen.append(model[1].weight.data.clone())

    def stop(model, generator):
        wreck(model)
        raise KeyboardInterrupt

    rows = stress(net, pair, [model_stressor("pruning", "first layer", 0.5, "share", prune)] * 2, seed=3)
    assert kept(net) == before and rows.accuracy[1] == rows.accuracy[2] and torch.equal(*seen)
    assert rows.iloc[1][["suite", "stressor", "strength", "unit"]].tolist() == ["pruning", "first layer", 0.5, "share"]
    with torch.no_grad(), restored(net):
        net[1].weight.copy_(seen[0])
        by_hand = 100 * (logits_of(net, pair[0]).argmax(1) == pair[1]).double().mean().item()
    assert rows.accuracy[1] == pytest.approx(by_hand)
    with pytest.raises(KeyboardInterrupt):
        stress(net, pair, [model_stressor("broken", "all", 1.0, "share", stop)])
    assert kept(net) == before


def test_weight_filters_go_through_the_same_door(net, pair):
    masks = {"5": net[5].weight.detach() > 0}
    one = model_stressor("weight_filters", "high_pass", 0.0, "alpha", lambda model, generator: filtered(model, masks))
    before = kept(net)
    rows = stress(net, pair, [one])
    with filtered(net, masks):
        assert rows.accuracy[1] == 100 * (logits_of(net, pair[0]).argmax(1) == pair[1]).double().mean().item()
    assert kept(net) == before and rows.suite.tolist() == ["clean", "weight_filters"]


def test_bit_flips_are_those_of_their_seed(net, pair):
    few = [s for s in SUITES["faults"](net, pair[0]) if s.strength == 0.05]
    rows = stress(net, pair, few, seed=4)
    for s, got in zip(few, rows.accuracy[1:]):
        with faulty(net, 0.05, s.name.removeprefix("bits of "), generator=torch.Generator().manual_seed(4)):
            z = logits_of(net, pair[0])
            assert got == pytest.approx(100 * ((z.argmax(1) == pair[1]) & z.isfinite().all(1)).double().mean().item())


# The schema


def test_rows_from_before_the_schema_come_with_its_columns():
    old = pd.DataFrame(dict(corruption=["original", "fog", None], severity=[0, 3, np.nan], accuracy=[9.0, 8.0, 7.0]))
    new = in_schema(old, corruption="stressor", severity="strength")
    assert new.columns.tolist() == ["suite", "stressor", "strength", "unit", "accuracy"]
    want = [under("clean") | dict(accuracy=9.0), under("fog", 3) | dict(accuracy=8.0)]
    assert new[:2].to_dict("records") == want and in_schema(new) is new
    assert new.iloc[2, :4].isna().all() and new.accuracy[2] == 7 and "corruption" in old
    with pytest.raises(ValueError, match="`stressor` is unknown: 'fogg'; did you mean 'fog'"):
        under("fogg", 1)


def test_the_names_of_the_schema_are_those_of_stress(net, pair):
    for suite in ("corruptions", "linf", "noise_blur"):
        for s in SUITES[suite](net, pair[0]):
            assert under(s.name, s.strength) == dict(suite=suite, stressor=s.name, strength=s.strength, unit=s.unit)
