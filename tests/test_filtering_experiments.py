"Paper 3: calibration, the experiments at their smallest size, their claims on made-up rows, and the suite by its name."

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustlit.claims import known_claims
from robustlit.data import Batches, load
from robustlit.evaluation import logits_of
from robustlit.filtering import filter_response as R
from robustlit.filtering import layer_scores as L
from robustlit.filtering import score_reliability as Q
from robustlit.filtering import selective_backpropagation as S
from robustlit.filtering.batchnorm_effect import batchnorm_share, norm_of, replaced
from robustlit.filtering.calibration import attack_constraints, attacked_ratio, halving_eps, held_out
from robustlit.filtering.filter_map import filter_map
from robustlit.filtering.pruning import free_share, pruned_masks
from robustlit.filtering.selective_training import SelectiveTraining, layers_to_freeze
from robustlit.stressors import SUITES, _suite, stress, suite_names
from robustlit.training import Learner
from robustlit.zoo import load_network


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


# ---------------------------------------------------------------- calibration


def test_eps_that_halves_accuracy_is_found_and_attack_leaves_that_share(model, pair):
    found = halving_eps([model], *pair, tolerance=0.03)
    again = attacked_ratio([model], *pair, found.eps)
    assert abs(found.ratio - 0.5) <= 0.03 and again["ratio"] == found.ratio
    smaller = found.tried[found.tried.eps < found.eps]
    assert (smaller.ratio > 0.5 - 0.03).all()


def test_calibration_refuses_networks_that_guess_and_ratios_out_of_reach(model, pair):
    x, y = pair
    with pytest.raises(ValueError, match="above chance"):
        halving_eps([model], x, (y + 1) % 4)
    with pytest.raises(ValueError, match="is not reached"):
        halving_eps([model], x, y, ratio=0.0, points=2, attack="random_sign")
    with pytest.raises(ValueError, match="`models`"):
        halving_eps([], x, y)


def test_the_three_constraints_are_told_apart():
    rows = [(90, 45), (80, 40), (90, 90), (90, 8)]
    table = attack_constraints(pd.DataFrame(rows, columns=["clean", "attacked"]).assign(classes=10), tolerance=0.06)
    assert table.hurts.tolist() == [True, True, False, True]
    assert table.above_chance.tolist() == [True, True, True, False]
    assert table.comparable.tolist() == [True, True, False, False]


def test_validation_images_are_not_those_of_the_test_or_of_training():
    full = load("digits")
    parts = [{im.numpy().tobytes() for im in part} for part in (full.x_train, full.x_valid, full.x_test)]
    x, y = held_out("digits", 30, "valid")
    shown = {(im * 255).round().byte().numpy().tobytes() for im in x}
    assert shown <= parts[1] and len(y) == 30 and y.bincount().tolist() == [3] * 10
    assert not shown & (parts[0] - parts[1]) and not shown & (parts[2] - parts[1])


# ---------------------------------------------------------------- a longer training goes on from a shorter one


def test_a_training_that_goes_on_gives_the_same_weights(tmp_path, monkeypatch):
    about = dict(width=4, n_train=300)
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path / "at_once"))
    at_once = load_network("filtering/resnet18", 0, "digits", epochs=3, **about).state_dict()
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path / "bit_by_bit"))
    one = load_network("filtering/resnet18", 0, "digits", epochs=1, **about).state_dict()
    on = load_network("filtering/resnet18", 0, "digits", epochs=3, **about).state_dict()
    back = load_network("filtering/resnet18", 0, "digits", epochs=2, **about).state_dict()
    assert all(torch.equal(v, on[k]) for k, v in at_once.items())
    assert not torch.equal(one["conv1.weight"], on["conv1.weight"])
    assert not torch.equal(back["conv1.weight"], on["conv1.weight"])


# ---------------------------------------------------------------- layers removed


def test_a_removed_layer_leaves_batch_norms_constant_zeros_or_the_mean(model, pair):
    x = pair[0]
    norm = norm_of(model, x)
    assert norm == {"0": "1", "4": None}
    bn = model[1]
    constant = bn.bias - bn.weight * (bn.running_mean - model[0].bias) / (bn.running_var + bn.eps).sqrt()
    seen = {}
    handle = bn.register_forward_hook(lambda m, args, out: seen.update(out=out))
    plain = logits_of(model, x)
    mean = seen["out"].mean(0)
    for way in ("constant", "zeros", "mean"):
        with replaced(model, "0", way, x, norm["0"]):
            handle.remove()
            handle = bn.register_forward_hook(lambda m, args, out: seen.update(out=out))
            logits_of(model, x)
        want = dict(constant=constant[:, None, None], zeros=torch.zeros(1), mean=mean)[way]
        assert torch.allclose(seen["out"], want.expand_as(seen["out"]), atol=1e-5)
    handle.remove()
    assert torch.equal(logits_of(model, x), plain)


def test_share_of_batch_norm_is_what_zeros_lose():
    made = [("a", "constant", 90.0), ("a", "zeros", 50.0), ("a", "mean", 90.0), ("b", "constant", 15.0)]
    made += [("b", "zeros", 10.0), ("b", "mean", 10.0)]
    rows = pd.DataFrame(made, columns=["layer", "stressor", "accuracy"]).assign(
        eps=0.0, path=True, norm="bn", chance=10.0
    )
    table = batchnorm_share(rows)
    assert table.share["a"] == 50.0 and np.isnan(table.share["b"])


# ---------------------------------------------------------------- pruning


@pytest.mark.parametrize("way", ["magnitude", "uniform", "random"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_every_way_removes_the_same_number(model, way, share):
    masks = pruned_masks(model, way, share)
    total = sum(m.numel() for m in masks.values())
    assert abs(sum(int((~m).sum()) for m in masks.values()) - share * total) <= len(masks)


def test_magnitude_keeps_the_largest_of_all_layers(model):
    masks = pruned_masks(model, "magnitude", 0.5)
    kept = torch.cat([model[int(k)].weight[m].abs().flatten() for k, m in masks.items()])
    gone = torch.cat([model[int(k)].weight[~m].abs().flatten() for k, m in masks.items()])
    assert kept.min() >= gone.max()
    with pytest.raises(ValueError, match="`scores`"):
        pruned_masks(model, "score", 0.5)


def test_free_share_is_the_largest_within_a_point():
    rows = pd.DataFrame(
        [("none", 0, 95.0, ""), ("random", 30, 94.5, ""), ("random", 60, 90.0, ""), ("magnitude", 80, 94.0, "")]
        + [("magnitude", 90, 94.2, "conv")],
        columns=["stressor", "n_zero", "accuracy", "layer"],
    ).assign(n_total=100, eps=0.0, n_zero_active=lambda t: t.n_zero / 2, n_active=100)
    table = free_share(rows)
    assert table.share.to_dict() == {"random": 30, "magnitude": 80, "one layer": 90}
    assert table.active["random"] == 15


# ---------------------------------------------------------------- selective training

FAMILY = pd.DataFrame(
    dict(layer=["0", "4"], stressor="combined", S_diff=[-0.3, 0.2], n_total=[36, 576]),
)


def fitted(arm, mode="skip", epochs=3, scores=lambda model: FAMILY):
    "A small network's weights after training, its first weights and the callback."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    x = torch.randint(256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    batches = Batches(x, torch.arange(60) % 4, 20, generator=torch.Generator().manual_seed(0))
    freeze = SelectiveTraining(scores, arm, start=1, every=1, mode=mode)
    kept = []
    freeze.after_epoch = lambda learn: kept.append({k: v.clone() for k, v in net.state_dict().items()})
    Learner(net, torch.optim.Adam(net.parameters(), 1e-2), [freeze]).fit(epochs, batches)
    return kept, freeze


@pytest.mark.parametrize("arm, still", [("negative", "0.weight"), ("positive", "4.weight")])
def test_frozen_layers_stand_still_bit_for_bit(arm, still):
    kept, freeze = fitted(arm)
    moving = {"0.weight": "4.weight", "4.weight": "0.weight"}[still]
    assert torch.equal(kept[0][still], kept[2][still])
    assert not torch.equal(kept[0][moving], kept[2][moving])
    assert not torch.equal(kept[0]["4.bias"], kept[2]["4.bias"])
    assert freeze.frame.layers.tolist() == [1, 1]


def test_zeroed_gradients_let_adam_move_on():
    kept, _ = fitted("negative", "zero_grad")
    assert (kept[2]["0.weight"] - kept[0]["0.weight"]).abs().max() > 0.01


def test_scoring_changes_nothing_but_the_frozen_layers():
    def drawn(model):
        torch.rand(7)  # a score may draw numbers
        return FAMILY.assign(S_diff=0.0)

    plain, _ = fitted("none")
    other, _ = fitted("negative", scores=drawn)
    assert all(torch.equal(a, b) for a, b in zip(plain[2].values(), other[2].values()))


def test_random_controls_match_the_number_or_the_weights():
    table = pd.DataFrame(
        dict(layer=list("abcdef"), stressor="combined", S_diff=[-1, -1, 1, 1, 1, 1], n_total=[10, 20, 30, 40, 50, 60])
    )
    for seed in range(5):
        assert len(layers_to_freeze(table, "random_layers", seed)) == 2
        chosen = layers_to_freeze(table, "random_weights", seed)
        assert abs(table.set_index("layer").n_total[chosen].sum() - 30) <= 30
    assert len({tuple(layers_to_freeze(table, "random_layers", s)) for s in range(5)}) > 1
    assert layers_to_freeze(table, "none") == []


# ---------------------------------------------------------------- what the claims say on made-up rows


def a_run(curve=lambda filter, a, hit: 1 - a, layers=("one", "two"), whole=(90.0, 45.0), n=9):
    "A map in which every filter's relative accuracy is told."
    about = dict(suite="filters", unit="weight", classes=10, most_given=12.0, n_removed=1)
    rows = [
        about
        | dict(stressor="unfiltered", strength=0, layer="", alpha_norm=np.nan, accuracy=w, eps=e, n_zero=0, n_total=0)
        for w, e in zip(whole, (0.0, 0.1))
    ]
    for layer in layers:
        for name in ("high_pass", "low_pass", "pulse"):
            for a in np.linspace(0, 1, n):
                share = dict(high_pass=a, low_pass=1 - a, pulse=0.1)[name]
                for w, e in zip(whole, (0.0, 0.1)):
                    made = dict(stressor=name, strength=a, layer=layer, alpha_norm=a, eps=e, n_zero=round(1000 * share))
                    rows.append(about | made | dict(n_total=1000, accuracy=w * curve(layer, share, e > 0)))
    return pd.DataFrame(rows)


def runs(curve, **keys):
    "The same run for every combination of the keys' values."
    names = list(keys)
    parts = [a_run(curve).assign(**dict(zip(names, v))) for v in itertools.product(*keys.values())]
    return pd.concat(parts, ignore_index=True)


ALL = dict(network=["resnet18"], data=["mnist", "cifar10", "tiny_imagenet"], epochs=[1, 4, 10], seed=[0, 1, 2])


def test_fragile_ends_on_one_network_leave_the_claim_open_and_others_refute_it():
    rows = runs(lambda layer, s, hit: max(0.0, 1 - 2 * s), **ALL)
    fragile = L.ends_are_fragile(
        rows.assign(accuracy=rows.accuracy + 0.1 * rows.seed), "cpu"
    )  # equal seeds tell nothing
    assert fragile.passed is None and "both fragile in 9 of 9 cells" in fragile.measured
    spare = L.ends_are_fragile(runs(lambda layer, s, hit: 1.0, **ALL), "cpu")
    assert spare.passed is False


def test_a_network_at_chance_has_no_scores_but_is_counted():
    good, bad = runs(lambda layer, s, hit: 1 - s, **ALL), runs(lambda layer, s, hit: 1 - s, **ALL)
    rows = pd.concat([good, bad.assign(network="squeezenet", accuracy=10.0)])
    assert set(L.scored_runs(rows).network) == {"resnet18"}
    found = L.attacked_above_clean(rows[(rows.network == "squeezenet") & (rows.epochs > 1)], "cpu")
    assert found.passed is None and "stay at chance" in found.measured


def test_alike_profiles_are_told_from_turned_ones():
    def by_depth(layer, share, hit):
        return 1 - share * dict(one=1.5, two=0.5)[layer] if share < 0.6 else 0.1

    same = L.alike_across_data(runs(by_depth, **ALL), "cpu")
    assert same.passed and all(v.min() > 0.99 for v in same.per_seed.values())
    rows = runs(by_depth, **ALL)
    turned = rows.data == "mnist"
    rows.loc[turned, "layer"] = rows.layer[turned].map({"one": "two", "two": "one", "": ""})
    rows = pd.concat([part.sort_values("layer") for _, part in rows.groupby(["data", "epochs", "seed"])])
    assert not L.alike_across_data(rows, "cpu").passed


def test_gain_that_only_fgsm_sees_does_not_pass():
    rows = []
    for arm, seed in itertools.product(S.ARMS, range(3)):
        for name in ("clean", "fgsm", "pgd", "apgd_ce", "square"):
            gain = 5 * (arm == "negative" and name == "fgsm")
            about = dict(arm=arm, seed=seed, stressor=name, after=4, start=1, network="resnet18", data="mnist")
            rows.append(about | dict(accuracy=50.0 + gain + 0.1 * seed * (arm == "negative")))
    found = S.frozen_is_robust(
        pd.DataFrame(rows).assign(accuracy=lambda t: t.accuracy - 1.0 * (t.arm == "negative") * (t.stressor == "pgd")),
        "cpu",
    )
    assert found.passed is False and "under FGSM alone it passes" in found.measured


def test_improvement_must_hold_on_images_that_did_not_choose_it():
    def rows(gained, lost):
        about = dict(
            part="test", stressor="high_pass", layer="a", strength=0.1, gained=gained, lost=lost, accuracy=91.0
        )
        whole = about | dict(stressor="unfiltered", layer="", gained=0, lost=0, accuracy=90.0)
        return pd.DataFrame([whole, about]).assign(n=1000, data="mnist")

    sure = pd.concat([rows(30, 2).assign(seed=s) for s in range(3)])
    luck = pd.concat([rows(6, 4).assign(seed=s) for s in range(3)])
    assert R.filtering_improves(sure, "cpu").passed is True
    assert R.filtering_improves(luck, "cpu").passed is False


def test_scores_that_random_masks_share_are_told():
    own = runs(lambda layer, s, hit: 1 - s**2, **(ALL | dict(data=["mnist"], epochs=[10])))
    twins = own[own.stressor.isin(["high_pass", "low_pass", "pulse"])].assign(stressor=lambda t: "random_" + t.stressor)
    rows = pd.concat([own, twins]).assign(thresholds_used=9, controlled=9)
    assert Q.more_than_random(rows, "cpu").passed is False
    lower = twins.assign(accuracy=twins.accuracy * (0.8 + 0.01 * twins.seed))
    assert Q.more_than_random(pd.concat([own, lower]).assign(thresholds_used=9, controlled=9), "cpu").passed is True


def test_every_claim_has_its_condition_and_a_condition_at_cpu_scale_where_it_can():
    found = {c.id: c for c in known_claims("filtering")}
    assert {i for i, c in found.items() if c.condition_cpu is None} == {"C-4", "C-5"}
    numbers = {int("".join(ch for ch in i[2:] if ch.isdigit())) for i in found}
    assert numbers == set(range(1, 19))
