"The audit against models whose fault is known; the models were written by somebody who had not seen the audit."

import copy

import pandas as pd
import pytest
import torch
from torch import nn

from robustlit import masking, planted
from robustlit.attacks import attack_curve, attack_images
from robustlit.benchmark.audit_reliability import alarms
from robustlit.cost import counted
from robustlit.data import as_images, load
from robustlit.masking import CHECKS, audit, audit_summary, red_table
from robustlit.preconditions import range_finding

CAUSES = {
    "linear": set(),
    "saturated": {"zero gradients"},
    "randomised": {"randomness"},
    "batch_dependent": {"batch", "statistics"},
    "softmax_outputs": {"outputs"},
    "zero_gradient": {"zero gradients"},
    "shattered": {"gradient's reach"},
    "clamped": {"edge pixels"},
    "detector": {"refusal"},
    "other_range": {"range"},
    "normalised_outside": {"range"},
}
FOOL_ATTACKS = {"saturated", "zero_gradient", "shattered", "clamped", "detector"}
BLINDS_GRADIENTS = FOOL_ATTACKS - {"detector"}


def test_every_planted_model_has_an_answer():
    assert set(CAUSES) == set(planted.PLANTED)


@pytest.fixture(scope="module")
def audited():
    return {name: audit(net, (x, y)) for name, (net, x, y) in ((n, getattr(planted, n)()) for n in CAUSES)}


@pytest.mark.parametrize("name", list(CAUSES))
def test_the_cause_is_named_and_no_other(audited, name):
    table = audited[name]
    assert set(table[table.red & (table.kind == "cause")].check) == CAUSES[name], audit_summary(table)


@pytest.mark.parametrize("name", list(CAUSES))
def test_symptoms_where_attacks_are_fooled_and_nowhere_else(audited, name):
    table = audited[name]
    symptoms = set(table[table.red & (table.kind == "symptom")].check)
    assert ("no gradients" in symptoms) if name in BLINDS_GRADIENTS else (bool(symptoms) == (name in FOOL_ATTACKS))


@pytest.mark.parametrize("name", list(CAUSES))
def test_every_check_says_something(audited, name):
    table = audited[name]
    assert list(table.check) == list(CHECKS)
    assert table.finding.str.len().min() > 5 and table.red.dtype == bool


def test_a_detector_with_a_class_of_its_own():
    net, x, y = planted.detector(reject_class=True)
    table = audit(net, (x, y))
    assert set(table[table.red & (table.kind == "cause")].check) == {"refusal"}


def test_other_seeds():
    for name in ("linear", "clamped", "normalised_outside"):
        net, x, y = getattr(planted, name)(3)
        table = audit(net, (x, y))
        assert set(table[table.red & (table.kind == "cause")].check) == CAUSES[name]


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1, 0.15])
def test_attacks_against_the_closed_form(eps):
    net, x, y = planted.linear()
    exact = planted.closed_form_accuracy(net, x, y, eps)
    make = lambda **o: attack_images(net, x, y, eps, generator=torch.Generator().manual_seed(0), **o).correct
    alive = make(attack="pgd", steps=50, restarts=3) & make(attack="apgd_dlr", steps=50)
    left = 100 * alive.float().mean().item()
    assert exact - 1e-4 <= left <= exact + 3


def test_the_model_is_as_before():
    net, x, y = planted.batch_dependent()
    net.train()
    net[2].eval()
    before, modes = {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    dice = torch.get_rng_state()
    audit(net, (x, y), images=50)
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), dice)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_surrogates_are_used():
    net, x, y = planted.zero_gradient()
    twin = planted.linear(1)[0]
    table = audit(net, (x, y), surrogates=[twin], eps=0.2).set_index("check")
    assert table.red["transfer"] and "1 given" in table.finding["transfer"]


def answers(make):
    class Net(nn.Module):
        def forward(self, x):
            return make(x)

    return Net()


PAIR = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 10
FINDINGS = {
    "nan images": (lambda x: x.flatten(1)[:, :10], (PAIR[0] * float("nan"), PAIR[1]), "range", "NaN"),
    "nan logits": (lambda x: x.flatten(1)[:, :10] * float("nan"), PAIR, "outputs", "not finite"),
    "a map": (lambda x: x, PAIR, "outputs", "row of logits"),
    "does not fit": (lambda x: x @ torch.zeros(3, 3), PAIR, "outputs", "does not take"),
    "few classes": (lambda x: x.flatten(1)[:, :3], PAIR, "outputs", "labels go up to 9"),
    "below zero": (lambda x: x.flatten(1)[:, :10], (PAIR[0] * 2 - 1, PAIR[1]), "range", "not in"),
}


@pytest.mark.parametrize("what", list(FINDINGS))
def test_bad_input_is_a_finding(what):
    make, data, check, told = FINDINGS[what]
    table = audit(answers(make), data).set_index("check")
    assert table.red[check] and told in table.finding[check]


def test_what_cannot_be_audited_is_refused():
    with pytest.raises(TypeError, match="wrap a function"):
        audit(lambda x: x, PAIR)
    with pytest.raises(ValueError, match="`eps`"):
        audit(answers(lambda x: x.flatten(1)[:, :10]), PAIR, eps=-0.1)
    with pytest.raises(TypeError, match="int64"):
        audit(answers(lambda x: x.flatten(1)[:, :10]), (PAIR[0], PAIR[1].float()))


class Cropped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(nn.functional.pad(x[:, :, 1:7, 1:7], (1, 1, 1, 1)))


class Clipped(Cropped):
    def forward(self, x):
        return self.net((2 * x - 0.001).clamp(0, 1) / 2)


def test_pixels_that_nobody_looks_at_are_no_fault_and_clipped_ones_are():
    net, x, y = planted.linear()
    assert not audit(Cropped(net), (x, y)).set_index("check").red["edge pixels"]
    assert audit(Clipped(net), (x, y)).set_index("check").red["edge pixels"]


class Cut(Cropped):
    @torch.no_grad()
    def forward(self, x):
        return self.net(x)


class Hard(Cropped):
    def forward(self, x):
        return nn.functional.one_hot(self.net(x).argmax(1), 10).float()


class Numpy(Cropped):
    def forward(self, x):
        return torch.from_numpy(self.net(x).detach().numpy())


@pytest.mark.filterwarnings("ignore:no gradient of")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [Cut, Hard, Numpy])
def test_a_model_without_gradients_gets_a_whole_table(kind, frozen):
    net, x, y = planted.linear()
    table = audit(kind(net).requires_grad_(not frozen), (x, y), images=100).set_index("check")
    assert list(table.index) == list(CHECKS)
    assert table.red["zero gradients"] and "no gradient reaches the images" in table.finding["zero gradients"]
    assert table.red["no gradients"] or kind is Hard  # its margins are all alike, so that Square is blind as well


class Rooted(Cropped):
    def forward(self, x):
        return self.net(x.sqrt() ** 2)


class Logged(Cropped):
    def forward(self, x):
        return self.net(x) + 0 * (x.log().clamp(min=-9)).sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("kind", [Rooted, Logged])
def test_gradients_that_are_not_finite_are_named_and_the_others_used(kind):
    net, x, y = planted.linear()
    model, options = kind(net), dict(generator=torch.Generator().manual_seed(0), steps=10)
    table = audit(model, (x, y), images=60).set_index("check")
    assert table.red["finite gradients"] and "100.0 %" in table.finding["finite gradients"]
    for attack in ("mim", "pgd", "apgd_ce"):
        for norm, eps in (("linf", 0.15), ("l2", 1.0)):
            left = attack_images(model, x, y, eps, attack, norm=norm, **options).correct.float().mean()
            assert left < attack_images(model, x, y, 0.0, attack, **options).correct.float().mean() - 0.1


class Counting(Cropped):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return self.net(x) * (1 + 0.1 * self.calls)


def test_memory_is_no_dice():
    net, x, y = planted.linear()
    table = audit(Counting(net), (x, y), images=60).set_index("check")
    assert table.red["state"] and not table.red["randomness"] and "reset" in table.finding["state"]
    table = audit(planted.randomised()[0], (x, y), images=60).set_index("check")
    assert table.red["randomness"] and not table.red["state"]


@pytest.mark.parametrize("what", ["guessing", "eps", "one image"])
def test_where_there_is_nothing_to_audit(what):
    net, x, y = planted.linear()
    if what == "guessing":
        y = (y + 1) % 10
    table = audit(net, (x[:1], y[:1]) if what == "one image" else (x, y), eps=0.0 if what == "eps" else None)
    assert (
        audit_summary(table) == "something to audit"
        and "nothing to audit" in table.set_index("check").finding["something to audit"]
    )


@pytest.mark.parametrize("head", [torch.sigmoid, torch.tanh, lambda z: z.softmax(1)])
def test_outputs_that_are_pressed_into_a_range_are_no_logits(head):
    class Headed(Cropped):
        def forward(self, x):
            return head(self.net(x))

    net, x, y = planted.linear()
    assert audit(Headed(net), (x, y), images=60).set_index("check").red["outputs"]


def test_an_error_in_one_check_is_its_finding(monkeypatch):
    def broken(s):
        raise RuntimeError("no luck")

    monkeypatch.setitem(CHECKS, "convergence", ("symptom", broken))
    table = audit(planted.linear()[0], planted.linear()[1:], images=60).set_index("check")
    assert table.red.sum() == 1 and table.finding["convergence"] == "could not be tested: RuntimeError: no luck"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    net, x, y = planted.linear()
    table = audit(copy.deepcopy(net).to(dtype), (x, y), images=100)
    assert not table[table.kind == "cause"].red.any(), audit_summary(table)


def test_a_batch_norm_that_learns_while_it_looks_is_put_back():
    class Stubborn(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(True)

    net, x, y = planted.linear()
    model = nn.Sequential(Stubborn(1), net)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    audit(model, (x, y), images=50)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def straight(model, x, y, eps, steps=20):
    moved = x.clone()
    for _ in range(steps):
        moved.requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(moved), y), moved)
        moved = (moved.detach() + eps / 4 * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return moved


def clipping(model, x, y, eps, steps=20):
    move = torch.zeros_like(x)
    for _ in range(steps):
        move.requires_grad_()
        shown = (x + move).clamp(1e-6, 1 - 1e-6)
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(shown), y), move)
        move = (move.detach() + eps / 4 * g.sign()).clamp(-eps, eps)
    return (x + move).clamp(0, 1)


OWN = {
    "sound": (straight, set()),
    "clips inside": (clipping, {"known answer", "strength"}),
    "goes too far": (lambda m, x, y, e: straight(m, x, y, 2 * e), {"ball"}),
    "leaves [0, 1]": (lambda m, x, y, e: x + e * (x - 0.5).sign(), {"ball", "known answer", "strength"}),
    "noise": (lambda m, x, y, e: (x + e * torch.randn_like(x).sign()).clamp(0, 1), {"known answer", "strength"}),
    "raises": (lambda m, x, y, e: 1 / 0, {"ball", "known answer", "strength"}),
    "no images": (lambda m, x, y, e: None, {"ball", "known answer", "strength"}),
}


@pytest.mark.parametrize("what", list(OWN))
def test_an_own_attack_is_audited(what):
    attack, red = OWN[what]
    table = audit(planted.linear()[0], planted.linear()[1:], 0.1, images=200, attack=attack)
    mine = table[table.kind == "attack"]
    assert {c.removeprefix("own attack: ") for c in mine.check[mine.red]} == red, mine.finding.tolist()


def test_an_own_attack_goes_where_a_name_goes_and_never_wins_outside_the_ball():
    net, x, y = planted.linear()
    by_name = attack_images(net, x, y, 0.1, "pgd", generator=torch.Generator().manual_seed(0)).correct
    own = attack_images(net, x, y, 0.1, straight).correct
    assert (own != by_name).sum() <= 2
    rows = attack_curve(net, x, y, [0.05, 0.1], straight)
    assert rows.groupby("eps").correct.sum().is_monotonic_decreasing
    for bad, told in ((lambda m, x, y, e: 1 - x, "stay within eps 0.1"), (lambda m, x, y, e: x[:3], "images of shape")):
        with pytest.raises(ValueError, match=told):
            attack_images(net, x, y, 0.1, bad)


def test_passes_are_no_more_than_said_beforehand():
    model, x, _ = planted.linear()
    x = x[:20]
    subject, counts = masking.Subject(model, x, model(x).argmax(1), 1e-5, 0), {}
    for name in masking.CHECKS:
        calls = []
        with counted(model, calls.append):
            masking._finding(name, subject)
        counts[name] = sum(calls) / len(x)
    said = {name: masking.PASSES.get(name, 10) for name in counts}
    assert all(counts[name] <= said[name] for name in counts), counts
    assert sum(counts.values()) > 0.9 * sum(said.values())


def test_a_network_at_chance_is_counted_apart_from_false_alarms():
    row = lambda seed, check, red: dict(
        network="asleep", seed=seed, check=check, kind="cause", red=red, planted="", clean=10.0 + seed
    )
    rows = [row(0, "something to audit", True), row(1, "something to audit", False), row(1, "range", True)]
    table = alarms(pd.DataFrame([*rows, row(2, "range", False)])).loc["asleep"]
    assert (table.audits, table.at_chance, table.alarms, table.with_alarm, table.clean) == (3, 1, 1, 1, 11.0)
    assert table.which == "range (1)"


@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_a_weak_network_with_normalisation_outside_is_told_from_one_without(noise):
    digits = load("digits")
    x, y, shown = as_images(digits.x_train)[:1000], digits.y_train[:1000].clone(), as_images(digits.x_test)[:200]
    far = (x - x.mean()) / x.std()
    found = {}
    for name, images in dict(inside=x, outside=far).items():
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        labels = torch.where(torch.rand(1000, generator=generator) < noise, torch.randint(0, 10, (1000,)), y)
        opt = torch.optim.Adam(model.parameters(), 0.003)
        for i in torch.arange(1000).repeat(15).split(50):
            opt.zero_grad()
            nn.functional.cross_entropy(model(images[i]), labels[i]).backward()
            opt.step()
        found[name] = range_finding(model.eval(), shown, digits.y_test[:200])
    assert not found["inside"][0], found["inside"][1]
    assert found["outside"][0] == (noise > 0), found["outside"][1]  # a strong one bears it: 94 % instead of 99


def test_images_that_repeat_are_audited_like_others():
    model, x, y = planted.linear()
    table = audit(model, (x[:4].repeat(15, 1, 1, 1), y[:4].repeat(15)), eps=0.1)
    assert not table.finding.str.contains("could not be tested").any(), table.finding.tolist()
    assert not table.red[table.check == "refusal"].any()


def test_a_check_that_was_not_made_is_not_counted():
    one = dict(kind="cause", check="scale", red=True, network="a")
    table = red_table(pd.DataFrame([one, one, one | dict(check="range", network="b")]), ["network"])
    assert table.loc[("cause", "scale"), "a"] == 2 and table.loc[("cause", "scale")].isna()["b"]
