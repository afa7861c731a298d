"Paper 4: sub-networks of a dropout network, and the surface of its loss."

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlit.attacks import attack_images
from robustlit.claims import known_claims
from robustlit.data import Dataset, load
from robustlit.dropen import loss_surface as L
from robustlit.dropen import subnetworks as S
from robustlit.dropen.loss_surface import (
    curvature,
    decision_slice,
    gradient_norms,
    loss_plane,
    slice_figure,
    surface_figure,
)
from robustlit.dropen.networks import BUILDERS, build
from robustlit.dropen.subnetworks import monte_carlo_dropout, subnetwork, transfer_by_pair, transfer_maps, transfer_rate
from robustlit.dropen.training_methods import unseen_images
from robustlit.evaluation import logits_of
from robustlit.zoo import load_network


def blank(channels, side):
    x, y = torch.zeros(2, channels, side, side, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    x[0] = 255
    return Dataset("blank", x, y, x, y, x, y, tuple("0123456789"))


def small(dropout=0.0, act=nn.ReLU):
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 3, padding=1), act(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 12), act()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(12, 10)).double().eval()


def images(n):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n, 1, 8, 8, generator=generator).double(), torch.randint(10, (n,), generator=generator)


CLAIMS = {c.id: c for c in known_claims("dropen")}


# Sub-networks


@pytest.mark.parametrize("name", BUILDERS.names())
def test_a_mask_is_fixed_for_all_images_and_calls_and_differs_between_seeds(name):
    torch.manual_seed(0)
    model, x = build(name, blank(1, 28), width=4).eval(), torch.rand(6, 1, 28, 28)
    first, again, other = subnetwork(model, 3), subnetwork(model, 3), subnetwork(model, 4)
    z = first(x)
    assert torch.equal(first(x), z) and torch.equal(again(x), z) and torch.equal(logits_of(first.train(), x), z)
    first.eval()
    torch.testing.assert_close(torch.cat([first(x[k : k + 1]) for k in range(6)]), z, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other(x), z) and not torch.allclose(model(x), z)


def test_a_mask_keeps_each_feature_by_its_chance_and_divides_by_what_stays():
    ones = torch.ones(1, 20_000)
    for p in (0.1, 0.5, 0.9):
        masks = [subnetwork(nn.Sequential(nn.Dropout(p)), seed)(ones) for seed in range(5)]
        for m in masks:
            values = m.unique()
            assert len(values) == 2 and values[0] == 0 and values[1].item() == pytest.approx(1 / (1 - p), rel=1e-6)
            assert (m > 0).double().mean().item() == pytest.approx(1 - p, abs=0.02)
        overlap = ((masks[0] > 0) & (masks[1] > 0)).double().mean().item()
        assert overlap == pytest.approx((1 - p) ** 2, abs=0.02)


def test_masks_average_to_the_whole_network():
    "Dropout before the last layer alone: the logits are linear in the mask."
    torch.manual_seed(0)
    model, x = build("lenet", blank(1, 28), width=4).eval(), torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        logits = torch.stack([subnetwork(model, seed)(x) for seed in range(400)])
    error = logits.std(0) / 400**0.5
    assert ((logits.mean(0) - model(x)).abs() < 5 * error).all()


def test_layers_have_masks_of_their_own_also_where_they_are_one_module():
    drop = nn.Dropout(0.5)
    twice = subnetwork(nn.Sequential(drop, drop), 0)
    once = subnetwork(nn.Sequential(nn.Dropout(0.5), nn.Identity()), 0)
    ones = torch.ones(1, 1000)
    assert (twice(ones) > 0).sum() < 0.35 * 1000 < (once(ones) > 0).sum()


def test_channels_go_as_a_whole():
    out = subnetwork(nn.Sequential(nn.Dropout2d(0.5)), 0)(torch.ones(2, 40, 5, 5))
    assert torch.equal(out, out[:1, :, :1, :1].expand(2, 40, 5, 5)) and {*out.unique().tolist()} == {0.0, 2.0}


def test_the_network_that_is_given_stays_as_it_was():
    model = build("lenet", blank(1, 28), width=4).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = subnetwork(model), monte_carlo_dropout(model, 3)
    for m in made:
        logits_of(m, torch.rand(2, 1, 28, 28))
        for p in m.parameters():
            p.data.zero_()
    assert model.training and isinstance(model.dropout, nn.Dropout)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("make", [subnetwork, monte_carlo_dropout])
def test_a_network_without_dropout_is_refused(make):
    for model in (build("lenet", blank(1, 28), dropout=0.0), nn.Linear(4, 10)):
        with pytest.raises(ValueError, match="`model` must have a dropout layer .* build it with dropout above 0"):
            make(model)
    with pytest.raises(ValueError, match="`model` must drop by Dropout, .* got AlphaDropout"):
        make(nn.Sequential(nn.AlphaDropout(0.5)))


def test_monte_carlo_dropout_averages_probabilities_of_fresh_masks():
    model, (x, _) = small(0.5), images(6)
    random = monte_carlo_dropout(model, 4).eval()
    torch.manual_seed(7)
    seen = random(x).exp()
    torch.manual_seed(7)
    ours = torch.stack([model.train()(x).softmax(1) for _ in range(4)]).mean(0)
    torch.testing.assert_close(seen, ours)
    assert not torch.equal(random(x).exp(), seen)
    torch.testing.assert_close(seen.sum(1), torch.ones(6, dtype=torch.double))


def test_transfer_rate_by_hand():
    right = torch.tensor([1, 1, 1, 1, 1, 0], dtype=torch.bool)
    source = torch.tensor([1, 1, 1, 1, 0, 1], dtype=torch.bool)
    target = torch.tensor([1, 0, 0, 1, 1, 1], dtype=torch.bool)
    assert transfer_rate(right, source, target) == dict(transfer=50.0, broken=4)
    assert transfer_rate(right, source, source)["transfer"] == 100
    nothing = transfer_rate(right, torch.zeros(6, dtype=torch.bool), target)
    assert nothing["broken"] == 0 and np.isnan(nothing["transfer"])


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        about = S.subnetworks.profiles["smoke"] | dict(images=60, others=2)
        yield S.subnetworks(**about), {k: load_network("dropen/direct", k, **about_network(about)) for k in range(3)}


def about_network(about):
    return dict(data=about["data"], profile=about["training"], epochs=about["epochs"])


def test_rows_of_sub_networks(transferred):
    rows, nets = transferred
    assert rows[["suite", "stressor", "strength", "unit", "accuracy", "n", "source", "target"]].notna().all().all()
    assert {*rows.stressor} == {"clean", "random_sign", "pgd"} and set(rows.n) == {60}
    own = rows[rows.pair == "itself"]
    assert len(own) == 5 and (own.transfer == 100).all()
    masks, seeds = rows[rows.pair == "masks"], rows[rows.pair == "seeds"]
    assert len(masks) == 6 and len(seeds) == 2 and (seeds.source == "whole").all()
    assert masks.transfer.between(0, 100).all() and masks.cosine.between(0, 1).all()
    assert masks.cosine.mean() > seeds.cosine.mean()
    both = masks.set_index(["source", "target"]).cosine
    assert both["mask 0", "mask 1"] == pytest.approx(both["mask 1", "mask 0"], rel=1e-9)


def test_both_experiments_say_the_same_again_whatever_was_drawn_before(transferred, surface):
    torch.manual_seed(11)
    again = S.subnetworks(**S.subnetworks.profiles["smoke"] | dict(images=60, others=2))
    pd.testing.assert_frame_equal(again, transferred[0])
    pd.testing.assert_frame_equal(L.loss_surface(**L.loss_surface.profiles["smoke"]), surface[0])


def test_a_row_is_what_a_plain_transcription_gives(transferred):
    rows, nets = transferred
    x, y = unseen_images("digits", 60, "smoke")
    source, target, eps = nets[0], nets[1], 0.1
    a = S._attacked(source, x, y, eps, 0, 10)
    assert (a - x).abs().max() <= eps + 1e-6 and 0 <= a.min() and a.max() <= 1
    wrong = lambda m, v: m(v).argmax(1) != y
    with torch.no_grad():
        counts = ~wrong(source, x) & ~wrong(target, x) & wrong(source, a)
        rate = 100 * (counts & wrong(target, a)).sum().item() / counts.sum().item()
    row = rows[(rows.source == "whole") & (rows.target == "other 1")].iloc[0]
    assert row.transfer == pytest.approx(rate) and row.broken == counts.sum().item() and row.strength == eps
    g = []
    for m in (source, target):
        leaf = x.double().requires_grad_()
        loss = F.cross_entropy(m.double()(leaf), y, reduction="sum")
        g.append(torch.autograd.grad(loss, leaf)[0].flatten(1))
        m.float()
    cosine = F.cosine_similarity(*g).abs().mean().item()
    assert row.cosine == pytest.approx(cosine, rel=1e-6)


def test_kinds_of_pairs_weigh_by_what_they_broke():
    rows = pd.DataFrame(dict(source=["mask 0", "mask 1", "whole"], target=["mask 1", "mask 0", "other 1"]))
    rows = rows.assign(pair=["masks", "masks", "seeds"], transfer=[100.0, 40.0, np.nan], broken=[10, 30, 0], cosine=0.5)
    table = transfer_by_pair(rows)
    assert table.loc["masks", "transfer"] == 55 and table.loc["masks", "broken"] == 40
    assert np.isnan(table.loc["seeds", "transfer"])


def transfers(before, after, broken=200, data="mnist"):
    "Rows of three seeds, of one pair of masks."
    about = dict(data=data, source="mask 0", target="mask 1", pair="masks", broken=broken, cosine=0.5)
    both = dict(direct=before, dropen=after)
    return pd.DataFrame(
        [about | dict(network=k, seed=s, transfer=t) for k, rates in both.items() for s, t in enumerate(rates)]
    )


@pytest.mark.parametrize(
    "before, after, outcome",
    [
        ([95, 95, 96], [80, 70, 85], "holds"),
        ([95, 95, 96], [94, 90, 92], "fails"),
        ([80, 85, 86], [60, 50, 55], "fails"),
    ],
)
def test_d12_on_made_up_rows(before, after, outcome):
    found = CLAIMS["D-12"](transfers(before, after), "cpu")
    assert found.outcome == outcome
    assert found.per_seed["mnist, before"].tolist() == before and found.per_seed["mnist, after"].tolist() == after


def test_d12_needs_attacks_that_break_something_and_both_datasets():
    assert CLAIMS["D-12"](transfers([95] * 3, [70] * 3, broken=50), "cpu").outcome == "not measured"
    both = [transfers([95] * 3, [70] * 3), transfers([95] * 3, [94] * 3, data="cifar10")]
    assert CLAIMS["D-12"](pd.concat(both), "paper").outcome == "fails"


# Steepness and bend


def transcribed_slope(model, x, y, objective):
    "One image at a time."
    rows = []
    for one, label in zip(x, y):
        leaf = one[None].clone().requires_grad_()
        z = model(leaf)[0]
        rivals = torch.cat([z[:label], z[label + 1 :]])
        loss = -z.log_softmax(0)[label] if objective == "ce" else rivals.max() - z[label]
        rows.append(torch.autograd.grad(loss, leaf)[0].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("objective", ["ce", "cw"])
def test_gradient_norms_equal_a_plain_transcription(objective):
    model, (x, y) = small(0.5), images(7)
    expected = transcribed_slope(model, x, y, objective).square().sum(1).sqrt()
    model.train()
    torch.testing.assert_close(gradient_norms(model, x, y, objective), expected, rtol=1e-10, atol=0)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_curvature_is_the_second_derivative_along_the_gradient():
    model, (x, y) = small(act=nn.Tanh), images(4)
    found = curvature(model, x, y, h=1e-5)
    for k in range(4):
        loss = lambda v, k=k: F.cross_entropy(model(v.view(1, 1, 8, 8)), y[k : k + 1])
        hessian = torch.autograd.functional.hessian(loss, x[k].flatten())
        g = transcribed_slope(model, x, y, "ce")[k]
        unit = g / g.norm()
        assert found[k].item() == pytest.approx((unit @ hessian @ unit).item(), rel=1e-3)


def test_a_plane_of_logits_does_not_bend():
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), images(5)
    w = model[1].weight
    best = model(x).scatter(1, y[:, None], -np.inf).argmax(1)
    torch.testing.assert_close(gradient_norms(model, x, y, "cw"), (w[best] - w[y]).norm(dim=1).detach())
    assert curvature(model, x, y, "cw", h=1e-3).abs().max() < 1e-9


def test_no_gradient_no_bend():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :10]

    x, y = images(3)
    assert (gradient_norms(Constant(), x, y, "cw") == 0).all() and (curvature(Constant(), x, y, "cw") == 0).all()


# The surface


def test_the_plane_holds_the_clean_loss_and_that_of_fgsm():
    model, (x, y) = small().float(), images(6)
    x, eps = x.float(), 0.07
    plane = loss_plane(model, x, y, eps, points=7, reach=1.5).set_index(["along", "across"])
    assert len(plane) == 49 and (plane.n == 6).all()
    clean = F.cross_entropy(model(x), y).item()
    attacked = attack_images(model, x, y, eps, "fgsm", early_stop=False)
    assert plane.loss[0, 0] == pytest.approx(clean, rel=1e-5)
    assert plane.loss[1, 0] == pytest.approx(attacked.loss.mean().item(), rel=1e-5)
    assert plane.accuracy[1, 0] == pytest.approx(100 * attacked.correct.double().mean().item())
    assert plane.loss[1, 0] > clean > plane.loss[-1, 0]


def test_random_signs_are_those_of_the_seed_and_nearly_level():
    model, (x, y) = small().float(), images(6)
    planes = [loss_plane(model, x.float(), y, 0.1, points=3, seed=s).loss for s in (0, 0, 1)]
    assert planes[0].equals(planes[1]) and not planes[0].equals(planes[2])
    rise = lambda p: p[p.along == 1.5].loss.mean() - p[p.along == -1.5].loss.mean()
    plane = loss_plane(model, x.float(), y, 0.1, points=3)
    turned = plane.rename(columns=dict(along="across", across="along"))
    assert rise(plane) > 3 * abs(rise(turned))


def test_pixels_of_the_surface_are_images_and_steps_add_up():
    seen = []

    class Watched(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            seen.append(x.detach())
            return self.model(x)

    x, y = images(4)
    loss_plane(Watched(small().float()), x.float().round(), y, 0.2, points=3)
    assert all(0 <= v.min() and v.max() <= 1 for v in seen)
    assert max((v - x.round()).abs().max().item() for v in seen) == pytest.approx(2 * 0.3, abs=1e-6)


# The slice


def test_the_slice_hits_its_three_images_and_mixes_them():
    model, (x, _) = small().float(), images(3)
    x = x.float()
    cut = decision_slice(model, x, points=9, margin=0.3)
    ends, grid = cut[cut.corner >= 0], cut[cut.corner < 0]
    assert len(grid) == 81 and ends.corner.tolist() == [0, 1, 2]
    assert ends.predicted.tolist() == model(x).argmax(1).tolist() and ends.distance.max() < 1e-6
    at = ends[["u", "v"]].to_numpy()
    sides = [np.linalg.norm(at[a] - at[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    lengths = [(x[a] - x[b]).norm().item() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert sides == pytest.approx(lengths, rel=1e-5)
    shares = np.linalg.solve((at[1:] - at[0]).T, (grid[["u", "v"]].to_numpy() - at[0]).T)
    edges = (x[1:] - x[0]).flatten(1).double()
    made = x[0].flatten().double() + torch.tensor(shares.T) @ edges
    expected = model(made.float().view(-1, 1, 8, 8)).argmax(1).numpy()
    assert (grid.predicted.to_numpy() == expected).mean() > 0.98  # rounding at a border
    away = (made[:, None] - x.flatten(1).double()[None]).abs().amax(2).amin(1)
    np.testing.assert_allclose(grid.distance, away, atol=1e-5)
    low, high = at.min(0), at.max(0)
    assert (grid[["u", "v"]].min() <= low).all() and (grid[["u", "v"]].max() >= high).all()


def test_three_images_that_span_no_plane_are_refused():
    model, (x, _) = small().float(), images(3)
    x = x.float()
    for three in (x[[0, 0, 1]], x[[0, 1, 1]], x[[0, 1, 0]], torch.stack([x[0], (x[0] + x[1]) / 2, x[1]])):
        with pytest.raises(ValueError, match="`x` must hold three images that span a plane"):
            decision_slice(model, three)
    for two in (x[:2], x.repeat(2, 1, 1, 1)):
        with pytest.raises(ValueError, match="`x` must hold three images, got"):
            decision_slice(model, two)


# The experiment


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        about = L.loss_surface.profiles["smoke"]
        yield L.loss_surface(**about), load_network("dropen/direct", 0, **about_network(about))


def test_rows_of_the_surface(surface):
    rows, model = surface
    assert rows[["suite", "stressor", "strength", "unit", "n", "objective"]].notna().all().all()
    assert rows.suite.value_counts().to_dict() == dict(slice=15**2 + 3, surface=7**2, clean=2, linf=2)
    assert rows[rows.suite != "slice"].accuracy.notna().all() and rows[rows.suite == "slice"].predicted.notna().all()
    assert rows[rows.suite == "surface"].strength.max() == pytest.approx(0.3)
    x, y = unseen_images("digits", 40, "smoke")
    norms = transcribed_slope(model.double(), x.double(), y, "cw").norm(dim=1).median().item()
    model.float()
    row = rows[(rows.stressor == "clean") & (rows.objective == "margin")].iloc[0]
    assert row.gradient_norm == pytest.approx(norms, rel=1e-6) and row.n == 40
    clean, attacked = rows[rows.objective == "cross-entropy"].accuracy
    assert attacked < clean


def test_the_slice_goes_through_the_first_images_of_its_classes(surface):
    rows, model = surface
    ends = rows[rows.corner >= 0]
    test = load("digits", size=28)
    first = [int((test.y_test == c).nonzero()[0]) for c in (3, 5, 8)]
    assert ends.label.tolist() == [3, 5, 8] and (ends.strength < 1e-6).all()
    assert ends.predicted.tolist() == logits_of(model, test.x_test[first]).argmax(1).tolist()
    with pytest.raises(ValueError, match="`classes` must be labels of test images of digits, got 11"):
        L.loss_surface(**L.loss_surface.profiles["smoke"] | dict(classes=(3, 5, 11)))


@pytest.mark.parametrize("n", [1, 4])
def test_figures_have_a_panel_a_network(surface, transferred, n):
    about = dict(seed=0, profile="smoke", hardware="GPU")
    copies = lambda rows: pd.concat([rows.assign(network=f"net {k}", **about) for k in range(n)])
    for draw, rows in ((surface_figure, surface[0]), (slice_figure, surface[0]), (transfer_maps, transferred[0])):
        fig = draw(copies(rows))
        titles = [ax.get_title() or ax.get_title("left") for ax in fig.axes]
        assert [t for t in titles if t] == [f"net {k}" for k in range(n)]
        plt.close(fig)


def smoothed(ratio, other=1.0, data="mnist"):
    "Gradient norms of three seeds at the end of the attack."
    rows = []
    for s, size in enumerate((1.0, 2.0, 4.0)):
        for name, r in (("direct", 1.0), ("dropen", ratio)):
            about = dict(network=name, seed=s, data=data, suite="linf", stressor="pgd")
            rows.append(about | dict(objective="cross-entropy", gradient_norm=size * r, curvature=r))
            rows.append(
                about | dict(objective="margin", gradient_norm=size * (other if name == "dropen" else 1), curvature=1.0)
            )
            rows.append(about | dict(suite="clean", objective="cross-entropy", gradient_norm=100.0, curvature=1.0))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("ratio, outcome", [(0.3, "holds"), (0.6, "fails"), (2.0, "fails")])
def test_d13_on_made_up_rows(ratio, outcome):
    found = CLAIMS["D-13"](smoothed(ratio, other=1.5), "cpu")
    assert found.outcome == outcome and found.unit == ""
    assert found.per_seed["mnist, cross-entropy"] == pytest.approx([ratio] * 3)
    assert found.per_seed["mnist, margin"] == pytest.approx([1.5] * 3)


def test_d13_needs_both_datasets_at_the_size_of_the_report():
    both = pd.concat([smoothed(0.3), smoothed(0.8, data="cifar10")])
    assert CLAIMS["D-13"](both, "paper").outcome == "fails"
