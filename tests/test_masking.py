"The audit against models whose fault is known; the models were written by somebody who had not seen the audit."

import pytest
import torch
from torch import nn

from robustlit import planted
from robustlit.attacks import attack_images
from robustlit.masking import CHECKS, audit, audit_summary

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
