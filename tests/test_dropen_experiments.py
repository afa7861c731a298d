"Dropen: how its networks are trained, the report's pipeline, what is measured on the gradients, the claims on rows made by hand."

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlit.data import Batches, as_images, load
from robustlit.dropen.adversarial_training import MagnitudeTraining
from robustlit.dropen.bigger_networks import bigger_is_better
from robustlit.dropen.gradient_masking import gradient_masking, is_not_masked
from robustlit.dropen.penalty_ablation import VARIANTS, batch_cosine, cosine_helps, gradient_lengths, more_batches_help
from robustlit.dropen.report_tables import PUBLISHED, descent, order_of_descents, report_attack, sizes_of_descents
from robustlit.dropen.robust_accuracy import is_no_adversarial_training, more_robust, robust_accuracy, surpasses_madry
from robustlit.dropen.training_methods import report_images, report_network, unseen_images
from robustlit.training import Learner
from robustlit.zoo import find_network, load_network, networks

DIGITS = load("digits", size=28)
SMOKE = dict(data="digits", profile="smoke")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


def test_report_attack_equals_its_transcription():
    x, y = report_images(DIGITS)(as_images(DIGITS.x_test[:6])), DIGITS.y_test[:6]
    model, eps = plain().double(), 0.7
    x = x.double()
    got = report_attack(model, x, y, eps, 7, torch.Generator().manual_seed(3))
    delta = (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3)).double() - 1) * eps
    image = torch.clamp(x + delta.clamp(-eps, eps), 0, 1)
    for _ in range(7):
        image = image.detach().requires_grad_()
        F.cross_entropy(model(image), y).backward()
        step = (image - x).detach() + eps / 10 * image.grad.sign()
        image = torch.clamp(x + torch.clamp(step, -eps, eps), 0, 1)
    torch.testing.assert_close(got, image.detach())
    assert float(got.min()) >= 0 and float(got.max()) <= 1


def test_the_clip_wins_over_the_radius():
    x = torch.full((2, 1, 28, 28), 2.8)
    assert (report_attack(plain(), x, torch.tensor([0, 1]), 0.5, 3) == 1).all()


def test_descent():
    assert descent(80.0, 20.0) == 75 and descent(50.0, 50.0) == 0
    with pytest.raises(ValueError, match="clean"):
        descent(0.0, 0.0)


def test_the_reports_network_lies_behind_the_first_layer():
    model = load_network("dropen/direct", **SMOKE)
    x = as_images(DIGITS.x_test[:20])
    own = report_network(model)
    torch.testing.assert_close(model(x), own(report_images(DIGITS)(x)))
    assert not own.training
    model[-1].bias.data += 1
    torch.testing.assert_close(model(x), own(report_images(DIGITS)(x)))


def test_training_in_the_reports_units_clips_what_is_attacked():
    seen = []

    class Look(MagnitudeTraining):
        def before_batch(self, learn):
            clean = learn.xb
            super().before_batch(learn)
            seen.append((clean, learn.xb))

    x, y = DIGITS.x_train[:20], DIGITS.y_train[:20]
    batches = Batches(x, y, 10, augment=report_images(DIGITS))
    model = plain()
    for m in model:
        m.requires_grad_(True)
    Learner(model, torch.optim.SGD(model.parameters(), 0.1), [Look(compat=["normalised_units"])]).fit(1, batches)
    for clean, shown in seen:
        assert torch.equal(clean[:5], shown[:5]) and float(clean.max()) > 1
        assert 0 <= float(shown[5:].min()) and float(shown[5:].max()) <= 1
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Learner(model, torch.optim.SGD(model.parameters(), 0.1), [MagnitudeTraining()]).fit(1, batches)


def test_colours_are_cropped_and_mirrored():
    colour = load("cifar10").subset(20, 20)
    x = as_images(colour.x_test)
    torch.manual_seed(0)
    shown = report_images(colour)(x)
    assert shown.shape == x.shape and not torch.equal(shown, x)
    assert 0 <= float(shown.min()) and float(shown.max()) <= 1


def test_same_first_weights_and_same_images_for_every_method():
    first = {}
    for name in ("direct", "report_pgd", "madry", "dropen", "free"):
        made, _ = find_network(f"dropen/{name}").make.__wrapped__(**SMOKE, seed=2)
        first[name] = torch.cat([p.detach().flatten() for p in made.parameters()])
    for name, weights in first.items():
        assert torch.equal(weights, first["direct"]), name


def test_all_networks_of_the_paper_are_in_the_zoo():
    names = {n.removeprefix("dropen/") for n in networks("dropen").index}
    rivals = {"madry", "trades", "fast", "free", "gradient_regularisation"}
    assert names == {"direct", "report_pgd", "dropen", "trs", "adp"} | rivals
    ensemble = load_network("dropen/trs", **SMOKE)
    x = as_images(DIGITS.x_test[:4])
    mean = torch.stack([m(x).softmax(1) for m in ensemble.members]).mean(0)
    torch.testing.assert_close(ensemble(x).exp(), mean)
    assert len(ensemble.members) == 3


def test_cosine_of_batches():
    class Fixed(nn.Module):
        "A network whose gradient is the same direction at every image."

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(0.01 * torch.randn(784))

        def forward(self, x):
            z = x.flatten(1) @ self.w
            return torch.stack([z, -z], 1)

    x, y = unseen_images("digits", 40, "smoke")
    cosine, floor = batch_cosine(Fixed(), x, y % 2, 10)
    assert cosine == pytest.approx(1, abs=1e-4)
    assert floor == pytest.approx((2 / (np.pi * 784)) ** 0.5)
    by_hand = batch_cosine(plain(), x, y, 20)[0]
    g = []
    for a, b in zip(x.split(20), y.split(20)):
        a = a.clone().requires_grad_()
        g.append(torch.autograd.grad(F.cross_entropy(plain()(a), b, reduction="sum"), a)[0].flatten(1))
    assert by_hand == pytest.approx(float(F.cosine_similarity(g[0], g[1]).abs().mean()), abs=1e-5)


def test_gradient_lengths_are_in_pixel_units():
    x, y = unseen_images("digits", 20, "smoke")
    model = plain()
    torch.manual_seed(0)
    got = gradient_lengths(model, x, y, 0.1, 2)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    assert got["clean"] == pytest.approx(float(g.flatten(1).norm(dim=1).mean()), rel=1e-5)
    torch.manual_seed(0)
    still = gradient_lengths(model, x, y, 0.0, 2)
    assert still["noise"] == pytest.approx(still["clean"]) and still["steepest"] == pytest.approx(still["clean"])


@pytest.mark.parametrize("variant", VARIANTS.names())
def test_variants_are_settings_of_the_network(variant):
    made, train = find_network("dropen/dropen").make.__wrapped__(**SMOKE, **VARIANTS[variant])
    assert isinstance(made, nn.Module) and callable(train)


def test_an_audit_may_be_of_a_variant(monkeypatch):
    with pytest.raises(ValueError, match="`variant` is one of Dropen's.*not 'direct'"):
        gradient_masking(network="direct", variant="no_cosine", data="digits", training="smoke")

    class Asked(Exception):
        pass

    def asked(*args, **settings):
        raise Asked(settings)

    monkeypatch.setattr("robustlit.dropen.gradient_masking.load_network", asked)
    for given, meant in {"no_cosine": dict(cosine=0.0), None: {}}.items():
        with pytest.raises(Asked) as found:
            gradient_masking.function(
                variant=given, architecture="lenet_wide", compat=True, data="digits", training="smoke"
            )
        assert found.value.args[0] == dict(profile="smoke", kind="lenet_wide", compat=True) | meant


def test_the_worst_is_below_every_attack():
    rows = robust_accuracy.function("direct", "digits", 0, "smoke", 20, 3, 10)
    left = rows[rows["suite"] != "curve"].set_index("stressor")["accuracy"]
    assert left["worst"] == left.min() and set(rows["n"]) == {20}
    assert {"fgsm", "pgd", "mim", "apgd_ce", "apgd_dlr", "square", "transfer", "worst_case"} <= set(left.index)


def tabled(shift=0.0, gap=10.0):
    "Rows of the report's numbers, or of some that differ from them."
    rows = []
    for (data, eps), of in PUBLISHED.items():
        for i, name in enumerate(("dropen", "report_pgd", "direct")):
            for seed in range(3):
                value = of[name] + shift if gap is None else 50 + gap * i + seed
                for space in ("report", "pixel"):
                    about = dict(space=space, data=data, network=name, seed=seed)
                    rows.append(about | dict(stressor="pgd", strength=eps, descent=value, accuracy=50.0))
                    rows.append(about | dict(stressor="clean", strength=0.0, descent=0.0, accuracy=97.0))
    return pd.DataFrame(rows)


def test_claims_on_the_reports_tables():
    assert order_of_descents(tabled(gap=10)).outcome == "holds"
    assert order_of_descents(tabled(gap=2)).outcome == "fails"
    assert order_of_descents(tabled(gap=-10)).outcome == "fails"
    assert order_of_descents(tabled(gap=None)).outcome == "holds"
    assert sizes_of_descents(tabled(gap=None, shift=7.9)).outcome == "holds"
    assert sizes_of_descents(tabled(gap=None, shift=-8.1)).outcome == "fails"


def attacked(**left):
    "Rows of networks with (clean, pgd, worst)."
    rows, spread = [], (-0.5, 0.0, 0.5)
    for i, (name, values) in enumerate(left.items()):
        for data in ("mnist", "cifar10"):
            for seed in range(3):
                for stressor, value in zip(("clean", "pgd", "worst"), values):
                    about = dict(suite="linf", network=name, data=data, seed=seed, stressor=stressor)
                    rows.append(about | dict(accuracy=value + spread[seed] * (1 + 0.1 * i)))
    return pd.DataFrame(rows)


def test_claims_on_robust_accuracy():
    better = attacked(dropen=(96, 40, 30), report_pgd=(97, 30, 30), direct=(98, 10, 5))
    assert more_robust(better).outcome == "holds"
    paid = attacked(dropen=(90, 40, 30), report_pgd=(97, 30, 30), direct=(98, 10, 5))
    assert more_robust(paid).outcome == "fails" and "artefact" in more_robust(paid).measured
    assert surpasses_madry(attacked(dropen=(96, 40, 30), madry=(96, 60, 20))).outcome == "holds"
    assert surpasses_madry(attacked(dropen=(96, 80, 30), madry=(96, 60, 40))).outcome == "fails"
    assert is_no_adversarial_training(attacked(report_pgd=(97, 30, 20), madry=(96, 60, 40))).outcome == "holds"
    assert is_no_adversarial_training(attacked(report_pgd=(97, 30, 20), madry=(96, 60, 28))).outcome == "fails"
    assert is_no_adversarial_training(attacked(report_pgd=(97, 30, 20), madry=(80, 60, 60))).outcome == "not measured"


def audited(red=False, worst=48.0):
    rows = [
        dict(data=d, seed=s, check="convergence", kind="cause", red=red and d == "mnist", pgd=50.0, worst=worst)
        for d in ("mnist", "cifar10")
        for s in range(3)
    ]
    return pd.DataFrame(rows)


def test_claim_on_masking():
    assert is_not_masked(audited()).outcome == "holds"
    assert (
        is_not_masked(audited(red=True)).outcome == "fails"
        and "convergence" in is_not_masked(audited(red=True)).measured
    )
    assert is_not_masked(audited(worst=44.0)).outcome == "fails"


def ablated(**left):
    rows = [
        dict(variant=v, seed=s, stressor=k, accuracy=a + 0.3 * s * (1 + i), cosine=0.1, floor=0.03)
        for i, (v, a) in enumerate(left.items())
        for s in range(3)
        for k in ("clean", "pgd", "worst")
    ]
    return pd.DataFrame(rows)


def test_claims_on_the_ablation():
    assert cosine_helps(ablated(dropen=30, no_cosine=20)).outcome == "holds"
    assert cosine_helps(ablated(dropen=20, no_cosine=20)).outcome == "fails"
    rising = ablated(memory_1=10, dropen=15, memory_20=20, memory_50=25)
    assert more_batches_help(rising).outcome == "holds"
    assert more_batches_help(ablated(memory_1=10, dropen=15, memory_20=9, memory_50=25)).outcome == "fails"


def test_claim_on_bigger_networks():
    def rows(big, small):
        each = [
            dict(kind=k, seed=s, stressor=n, descent=100 - a - 0.2 * s * len(k), accuracy=a + 0.2 * s * len(k))
            for k, a in dict(lenet_wide=big, lenet=small).items()
            for s in range(3)
            for n in ("pgd", "worst")
        ]
        return pd.DataFrame(each)

    assert bigger_is_better(rows(40, 20), "cpu").outcome == "holds"
    assert bigger_is_better(rows(20, 20), "cpu").outcome == "fails"


def test_a_refuted_claim_names_a_second_route():
    found = [
        order_of_descents(tabled(gap=2)),
        sizes_of_descents(tabled(gap=None, shift=-9)),
        more_robust(attacked(dropen=(90, 40, 30), report_pgd=(97, 30, 30), direct=(98, 10, 5))),
        surpasses_madry(attacked(dropen=(96, 80, 30), madry=(96, 60, 40))),
        is_not_masked(audited(red=True)),
        cosine_helps(ablated(dropen=20, no_cosine=20)),
    ]
    assert all(f.outcome == "fails" and f.second for f in found)
    assert "convergence" in found[4].second and "PGD-50" in found[5].second
