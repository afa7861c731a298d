"""Flipped bits: exact positions, exact rates, exact restoration."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from robustlit import faults as K
from robustlit.faults import RATES, WHERE, bit_fields, fault_curve, faulty, flip_bits, looks_binary, sites
from robustlit.metaplasticity.layers import BinaryLinear, binary_convnet, binary_mlp, real_mlp

VIEWS = {torch.float16: np.uint16, torch.float32: np.uint32, torch.float64: np.uint64}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def words(x):
    "The memory of a tensor as unsigned numbers, by numpy."
    return x.detach().cpu().contiguous().numpy().view(VIEWS[x.dtype])


def memory(net):
    "Every parameter and buffer, byte by byte."
    return {k: v.detach().cpu().contiguous().numpy().tobytes() for k, v in net.state_dict().items()}


def images(n=40, side=8, seed=0):
    return torch.rand(n, 1, side, side, generator=seeded(seed)), torch.arange(n) % 10


@pytest.fixture
def signs():
    torch.manual_seed(0)
    net = binary_mlp(64, (32, 32)).eval()
    net(images()[0])
    return net


@pytest.fixture
def floats():
    torch.manual_seed(0)
    return real_mlp(64, (32, 32)).eval()


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("dtype", VIEWS)
def test_positions_are_those_of_ieee_754(dtype):
    x = torch.randn(300, generator=seeded()).to(dtype)
    width = x.element_size() * 8
    for b in range(width):
        assert (words(flip_bits(x, 1, b)) ^ words(x) == VIEWS[dtype](1 << b)).all()
    full = VIEWS[dtype](2**width - 1)
    assert (words(flip_bits(x, 1)) ^ words(x) == full).all()


def test_fields_are_those_of_the_types():
    sizes = {torch.float16: (10, 5), torch.bfloat16: (7, 8), torch.float32: (23, 8), torch.float64: (52, 11)}
    for dtype, (mantissa, exponent) in sizes.items():
        fields = bit_fields(dtype)
        assert [len(fields[f]) for f in ("mantissa", "exponent", "sign")] == [mantissa, exponent, 1]
        assert sorted(b for f in fields.values() for b in f) == list(range(mantissa + exponent + 1))
    x = torch.tensor([1.5, -2.0, 0.0])
    assert torch.equal(flip_bits(x, 1, "sign"), -x)
    assert flip_bits(x, 1, "sign")[2].signbit()
    assert flip_bits(torch.tensor([1.0]), 1, 30).isinf()  # all ones in the exponent
    assert torch.equal(flip_bits(torch.ones(1), 1, ["sign", 31, "sign"]), -torch.ones(1))


def test_twice_is_never_mind():
    x = torch.randn(50, 7, generator=seeded())
    for rate, bits in ((0.3, None), (0.01, "exponent"), (1, [0, 31])):
        hit = flip_bits(x, rate, bits, seeded(1))
        assert not np.array_equal(words(hit), words(x))
        assert np.array_equal(words(flip_bits(hit, rate, bits, seeded(1))), words(x))


def test_rate_zero_and_one_and_input_left_alone():
    x = torch.randn(1000, generator=seeded())
    kept = words(x).copy()
    assert np.array_equal(words(flip_bits(x, 0)), kept)
    assert (words(flip_bits(x, 1)) == ~kept).all()
    assert np.array_equal(words(x), kept)
    assert flip_bits(torch.zeros(0, 3), 0.5).shape == (0, 3)
    turned = torch.randn(6, 4, generator=seeded()).T
    assert np.array_equal(words(flip_bits(turned, 1)), ~words(turned))


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.05, 0.5, 0.97])
def test_the_number_of_flips_is_binomial(rate):
    n = 4_000_000 if rate < 0.01 else 100_000
    counts = [sum(map(len, K._flips(n, rate, seeded(s)))) for s in range(60)]
    mean, sd = n * rate, math.sqrt(n * rate * (1 - rate))
    assert abs(np.mean(counts) - mean) < 5 * sd / math.sqrt(60)
    assert 0.5 < np.std(counts) / sd < 1.6
    assert all(stats.binomtest(c, n, rate).pvalue > 1e-6 for c in counts[:5])


def test_flips_are_independent_and_cross_the_pieces_unchanged():
    at = torch.cat(list(K._flips(200_000, 0.1, seeded(), piece=1000)))
    assert (at.diff() > 0).all() and at[0] >= 0 and at[-1] < 200_000
    hit = torch.zeros(200_000)
    hit[at] = 1
    share = hit.view(200, 1000).mean(0)  # by place in a piece
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / 200)
    for lag in (1, 2, 1000):
        both = (hit[lag:] * hit[:-lag]).mean().item()
        assert abs(both - 0.01) < 5 * math.sqrt(0.01 / len(hit))
    gaps, p = at.diff().numpy(), 0.1
    seen = np.array([(gaps == k).sum() for k in range(1, 40)])
    want = len(gaps) * p * (1 - p) ** np.arange(39)
    assert ((seen - want) ** 2 / want).sum() < stats.chi2.ppf(1 - 1e-5, 39)


def test_every_position_of_a_float_flips_equally_often():
    x = torch.zeros(20_000)
    hit = words(flip_bits(x, 0.02, generator=seeded()))
    counts = np.array([((hit >> np.uint32(b)) & 1).sum() for b in range(32)])
    assert stats.chisquare(counts).pvalue > 1e-5
    assert abs(int(counts.sum()) - 12_800) < 5 * math.sqrt(12_800)


def test_rare_flips_cost_what_they_are_worth(monkeypatch):
    asked, rand = [], torch.rand
    monkeypatch.setattr(K.torch, "rand", lambda n, **kw: asked.append(n) or rand(n, **kw))
    found = sum(map(len, K._flips(20_000_000, 1e-5, seeded())))
    assert 120 < found < 280 and sum(asked) < 4 * found


# ---------------------------------------------------------------- sites


def test_sites_count_every_bit(signs, floats):
    table = sites(signs)
    assert set(table["where"]) == {"weights", "batch_norm"}
    weights = table[table["where"] == "weights"]
    assert list(weights.layer) == ["1", "3", "5"] and set(weights.kind) == {"sign"}
    assert weights.bits.tolist() == [64 * 32, 32 * 32, 32 * 10] == weights["values"].tolist()
    norms = table[table["where"] == "batch_norm"]
    assert set(norms.tensor) == {"weight", "bias", "running_mean", "running_var"}
    assert norms.bits.sum() == 32 * 4 * (32 + 32 + 10)
    table = sites(floats)
    assert table[table["where"] == "weights"].bits.sum() == 32 * (64 * 32 + 32 * 32 + 32 * 10)
    assert (sites(floats.double())["kind"] == "float64").all()
    assert len(sites(nn.Flatten())) == 0


def test_what_is_binary_can_be_said(floats):
    class Mine(nn.Linear):
        binary = True

    assert looks_binary(Mine(2, 2)) and looks_binary(BinaryLinear(2, 2)) and not looks_binary(nn.Linear(2, 2))
    for binary in (["1"], "1", lambda m: isinstance(m, nn.Linear) and m.in_features == 64):
        table = sites(floats, binary).set_index("layer")
        assert table.loc["1", "kind"] == "sign" and table.loc["4", "kind"] == "float32"
    table = sites(Mine(3, 2))  # the bias stays a float
    assert table.kind.tolist() == ["sign", "float32"] and table.bits.tolist() == [6, 64]
    with pytest.raises(ValueError, match="binary"):
        sites(floats, ["nine"])


def test_a_shared_tensor_is_hit_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    before = net[0].weight.detach().clone()
    with faulty(net, 1, bits="sign") as hit:
        assert torch.equal(net[1].weight, -before) and hit.flipped == hit.exposed == 16
    assert torch.equal(net[0].weight, before)


# ---------------------------------------------------------------- a block of faults


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("rate", [0.02, 0.6])
@pytest.mark.parametrize("name", ["signs", "floats"])
def test_bits_are_restored_exactly(where, rate, name, request):
    net = request.getfixturevalue(name)
    before, x = memory(net), images()[0]
    clean = net(x)
    with faulty(net, rate, where, generator=seeded()) as hit:
        during = net(x)
        assert (memory(net) != before) == (where != "activations")
    assert hit.flipped > 0 and not torch.equal(during, clean)
    assert memory(net) == before and torch.equal(net(x), clean)
    assert not any(m._forward_pre_hooks for m in net.modules())
    with pytest.raises(KeyError):
        with faulty(net, rate, where):
            net(x)
            raise KeyError
    assert memory(net) == before and torch.equal(net(x), clean)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_nan_and_what_the_block_writes_are_restored_too(floats):
    with torch.no_grad():
        floats[1].weight[0, 0] = math.nan
        floats[1].weight[0, 1] = -0.0
    before = memory(floats)
    with faulty(floats, 0.5):
        with torch.no_grad():
            floats[1].weight.mul_(3)
    assert memory(floats) == before
    with faulty(floats, 0.5, "batch_norm"):
        floats.train()(images()[0])
        floats[2].running_mean = floats[2].running_mean.clone()
    floats[2].num_batches_tracked.zero_(), floats[5].num_batches_tracked.zero_(), floats[8].num_batches_tracked.zero_()
    assert memory(floats) == before


def test_blocks_nest(signs):
    before, old = memory(signs), signs[1].weight.detach().clone()
    with faulty(signs, 1, layers="1"):
        with faulty(signs, 1, layers="1"):
            assert torch.equal(signs[1].weight, old)
        assert torch.equal(signs[1].weight, -old)
        with faulty(signs, 0.3, "batch_norm"), faulty(signs, 0.3, "activations"):
            signs(images()[0])
    assert memory(signs) == before


def test_a_binary_weight_turns_and_nothing_else(signs):
    old = {k: v.detach().clone() for k, v in signs.named_parameters()}
    with faulty(signs, 0.1, generator=seeded()) as hit:
        turned = 0
        for k, v in signs.named_parameters():
            assert torch.equal(v.abs(), old[k].abs())
            turned += (v != old[k]).sum().item()
        assert turned == hit.flipped and hit.exposed == 64 * 32 + 32 * 32 + 32 * 10
        assert abs(turned - 0.1 * hit.exposed) < 5 * math.sqrt(0.09 * hit.exposed)
    with faulty(signs, 1):
        assert torch.equal(signs[1](torch.eye(64)), -old["1.weight"].sign().T)


@pytest.mark.parametrize("where", WHERE)
def test_only_the_named_layer_is_touched(where, floats):
    layer = "4" if where != "batch_norm" else "5"
    before = memory(floats)
    with faulty(floats, 1, where, layer, generator=seeded()) as hit:
        changed = {k.rpartition(".")[0] for k, v in memory(floats).items() if v != before[k]}
        assert changed == (set() if where == "activations" else {layer})
        seen = {k for k, m in floats.named_modules() if m._forward_pre_hooks}
        assert seen == ({layer} if where == "activations" else set())
        floats(images()[0])
    assert hit.flipped == hit.exposed == {"weights": 32 * 32, "batch_norm": 4 * 32, "activations": 40 * 32}[where] * 32


def test_activations_of_a_binary_network_turn_their_sign(signs):
    x, seen = images()[0], {}
    grab = signs[3].register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
    signs(x)
    clean = dict(seen)
    with faulty(signs, 1, "activations", "3") as hit:
        signs(x)
    grab.remove()
    assert torch.equal(seen["x"], -clean["x"]) and torch.equal(seen["out"], -clean["out"])
    assert hit.flipped == hit.exposed == 40 * 32
    with faulty(signs, 0.1, "activations", generator=seeded()) as hit:
        signs(x), signs(x)
    assert hit.exposed == 2 * 40 * (32 + 32)  # not the image
    assert abs(hit.flipped - 0.1 * hit.exposed) < 5 * math.sqrt(0.09 * hit.exposed)


def test_an_input_of_signs_is_one_bit_and_other_inputs_are_floats():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    x = torch.randn(20, 6, generator=seeded())
    for given, bits in ((x, 32), (x.sign(), 1)):
        with faulty(net, 1, "activations", "0") as hit:
            got = net[0](given)
        assert hit.exposed == hit.flipped == given.numel() * bits
        want = flip_bits(given, 1) if bits == 32 else -given
        np.testing.assert_array_equal(got.detach(), F.linear(want, net[0].weight, net[0].bias).detach())


def test_gradients_go_through_flipped_activations():
    net = nn.Sequential(nn.Identity(), nn.Linear(4, 1, bias=False))
    x = torch.tensor([[1.0, -1.0, 1.0, 1.0]], requires_grad=True)
    with faulty(net, 1, "activations", "1"):
        net(x).sum().backward()
    assert torch.equal(x.grad, -net[1].weight)
    y = torch.rand(1, 4, requires_grad=True)
    with faulty(net, 1, "activations", "1", bits=3):
        net(y).sum().backward()
    assert torch.equal(y.grad, net[1].weight)


@pytest.mark.parametrize("where", WHERE)
def test_the_generator_decides(where, signs):
    x = images()[0]

    def once(generator=None):
        with faulty(signs, 0.05, where, bits="sign", generator=generator):
            return signs(x).nan_to_num(1e9)  # a negative variance has no root

    assert torch.equal(once(seeded(1)), once(seeded(1))) and not torch.equal(once(seeded(1)), once(seeded(2)))
    torch.manual_seed(3)
    first, second = once(), once()
    torch.manual_seed(3)
    assert torch.equal(once(), first) and not torch.equal(first, second)


def test_a_convolutional_network():
    torch.manual_seed(0)
    net = binary_convnet((1, 28, 28)).eval()
    x, before = images(4, 28)[0], memory(net)
    for where in WHERE:
        with faulty(net, 0.1, where, generator=seeded()) as hit:
            net(x)
        assert abs(hit.flipped - 0.1 * hit.exposed) < 5 * math.sqrt(0.09 * hit.exposed)
    assert memory(net) == before
    net.to(memory_format=torch.channels_last)
    with faulty(net, 1):
        assert all(torch.isfinite(p).all() for p in net.parameters())
    assert memory(net) == before


# ---------------------------------------------------------------- curves


def test_a_curve_has_a_row_a_layer_rate_and_draw(signs):
    x, y = images()
    table = fault_curve(signs, x, y, (0, 0.1, 0.5), "weights", ("all", "each"), draws=3, generator=seeded())
    assert len(table) == 4 * 3 * 3 and list(table.layer.unique()) == ["all", "1", "3", "5"]
    assert (table.flipped[table.rate == 0] == 0).all() and (table.flipped[table.rate > 0] > 0).all()
    assert (table.accuracy == 100 * table.correct / 40).all() and (table.n == 40).all()
    clean = (signs(x).argmax(1) == y).sum().item()
    assert (table.correct[table.rate == 0] == clean).all()
    again = fault_curve(signs, x, y, [0.5], "weights", ["3"], draws=3, generator=seeded())
    part = table[(table.rate == 0.5) & (table.layer == "3")].reset_index(drop=True)
    assert again.equals(part)  # whatever else was asked for
    one = part.iloc[0]
    seed = torch.randint(2**62, (3,), generator=seeded())[0].item()
    with faulty(signs, 0.5, layers="3", generator=seeded(seed)) as hit:
        assert (signs(x).argmax(1) == y).sum().item() == one.correct and hit.flipped == one.flipped


def test_a_curve_leaves_the_network_and_its_mode_alone(floats):
    x, y = images()
    floats[0].train(), floats[4].train()
    before, modes = memory(floats), [m.training for m in floats.modules()]
    for where in WHERE:
        table = fault_curve(floats, x, y, (0, 0.3), where, draws=2, batch_size=7)
        assert (table.exposed > 0).sum() >= 2
    assert memory(floats) == before and modes == [m.training for m in floats.modules()]
    assert RATES == (0, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2)


def test_what_is_not_finite_is_wrong(floats):
    x, y = images()
    with torch.no_grad():
        floats[-1].bias[3] = math.nan
    table = fault_curve(floats, x, torch.full_like(y, 3), [0, 0.1], bits="exponent", draws=2, generator=seeded())
    assert (table.broken == 40).all() and (table.correct == 0).all()  # argmax of NaN would name class 3


def test_a_faulty_network_does_not_crash(floats, signs):
    x, y = images()
    for net in (floats, signs):
        for where in WHERE:
            table = fault_curve(net, x, y, [0.5, 1], where, "each", draws=2, generator=seeded())
            assert (table.correct + table.broken <= 40).all() and table.accuracy.between(0, 100).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", WHERE)
def test_another_device_flips_the_same(where, floats):
    x, y = images()
    here, there = (
        fault_curve(floats.to(d), x.to(d), y.to(d), (0, 1e-3, 0.1), where, draws=3, generator=seeded())
        for d in ("cpu", "cuda")
    )
    assert here.flipped.equals(there.flipped) and (here.correct - there.correct).abs().max() <= 2


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change, error, says",
    [
        (dict(rate=-0.1), ValueError, "rate"),
        (dict(rate=1.1), ValueError, "from 0 to 1"),
        (dict(rate="low"), TypeError, "rate"),
        (dict(where="weight"), ValueError, "did you mean 'weights'"),
        (dict(layers="2"), ValueError, "Known: 1, 4, 7"),
        (dict(layers=[]), ValueError, "at least one layer"),
        (dict(bits="exponents"), ValueError, "exponent"),
        (dict(bits=32), ValueError, "from 0 to 31"),
        (dict(bits=[]), ValueError, "at least one position"),
        (dict(bits=-1), ValueError, "bits"),
        (dict(bits=1.5), TypeError, "bits"),
        (dict(generator=7), TypeError, "torch.Generator"),
        (dict(binary=["x"]), ValueError, "binary"),
        (dict(model=3), TypeError, "torch.nn.Module"),
        (dict(model=nn.Flatten()), ValueError, "no weights"),
        (dict(model=nn.Linear(2, 2), where="batch_norm"), ValueError, "no batch norm"),
        (dict(model=nn.Linear(2, 2), where="activations"), ValueError, "no activations"),
        (dict(model=BinaryLinear(2, 2), bits="mantissa"), ValueError, "must include the sign"),
    ],
)
def test_bad_input_is_refused(change, error, says, floats):
    good = dict(model=floats, rate=0.1, where="weights", layers="4", bits=None, generator=seeded(), binary=None)
    if "model" in change or "where" in change:
        good["layers"] = None
    before = memory(floats)
    with faulty(**good):
        pass
    with pytest.raises(error) as e:
        with faulty(**good | change):
            pass
    assert says in str(e.value) and memory(floats) == before


@pytest.mark.parametrize(
    "change, error, says",
    [
        (dict(rates=[0.1, 2]), ValueError, "rates"),
        (dict(draws=0), ValueError, "draws"),
        (dict(batch_size=0), ValueError, "batch_size"),
        (dict(layers=[]), ValueError, "layers"),
        (dict(layers="conv"), ValueError, "layers"),
        (dict(y=torch.zeros(3, dtype=torch.int64)), ValueError, "labels"),
        (dict(y=torch.zeros(40)), TypeError, "int64"),
        (dict(x=images()[0] + 1), ValueError, "[0, 1]"),
    ],
)
def test_a_curve_refuses_bad_input(change, error, says, floats):
    x, y = images()
    good = dict(model=floats, x=x, y=y, rates=[0.1], draws=1, generator=seeded())
    fault_curve(**good)
    with pytest.raises(error) as e:
        fault_curve(**good | change)
    assert says in str(e.value)


def test_integers_are_not_floats():
    with pytest.raises(TypeError, match="`x` must be of a floating-point dtype"):
        flip_bits(torch.arange(3), 0.1)
    with pytest.raises(TypeError, match="dtype"):
        bit_fields(torch.int8)
