"Acceptance of the binarized layers and metaplastic Adam: hand-worked steps, an independent transcription, snapshots."

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

from robustlit.metaplasticity import layers
from robustlit.metaplasticity.layers import (
    BinaryConv2d,
    BinaryLinear,
    binary_convnet,
    binary_mlp,
    bn_state,
    load_bn_state,
    real_mlp,
    recalibrated_bn,
    sign,
    using_bn,
)
from robustlit.metaplasticity.optimizer import MetaplasticAdam


def transcribed(w, grads, meta, lr=0.005, decay=1e-7, b1=0.9, b2=0.999, m=None, v=None, t=0):
    "The published rule in float64 numpy, one matrix, written without a look at the package."
    w = np.array(w, dtype=np.float64)
    m = np.zeros_like(w) if m is None else np.array(m, dtype=np.float64)
    v = np.zeros_like(w) if v is None else np.array(v, dtype=np.float64)
    for g in grads:
        t += 1
        g = np.asarray(g, dtype=np.float64) + decay * w
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
        shrinks = np.sign(w) * m > 0
        free = np.where(shrinks & (w.ndim > 1), 1 - np.tanh(meta * np.abs(w)) ** 2, 1.0)
        w = w - rate * free * m / (np.sqrt(v) + 1e-8)
    return w


def run(w, grads, dtype=torch.float64, fused=None, **options):
    p = nn.Parameter(torch.as_tensor(w, dtype=dtype).clone())
    opt = MetaplasticAdam([p], fused=fused, **options)
    for g in grads:
        p.grad = torch.as_tensor(g, dtype=dtype)
        opt.step()
    return p.detach().double().numpy()


@pytest.mark.parametrize("fused", [True, False])
def test_only_the_shrinking_entry_of_a_matrix_is_damped(fused):
    w = torch.tensor([[0.5, -0.5, 0.0]])
    steps = {}
    for meta in (0.0, 1.35):
        p = nn.Parameter(w.clone())
        opt = MetaplasticAdam([p], meta=meta, weight_decay=0, fused=fused)
        m = torch.full_like(p, 0.2)
        opt.state[p] = dict(step=4, exp_avg=m, exp_avg_sq=torch.full_like(p, 0.3))
        p.grad = torch.full_like(p, 0.1)
        opt.step()
        steps[meta] = (p.detach() - w)[0]
    assert (steps[0.0] < 0).all()
    np.testing.assert_allclose(steps[1.35] / steps[0.0], [1 - math.tanh(0.675) ** 2, 1, 1], rtol=1e-4)


@pytest.mark.parametrize("meta", [0.0, 0.5, 1.35, 3.0])
def test_two_hundred_random_steps_follow_the_transcription(meta):
    rng = np.random.default_rng(int(meta * 100))
    w, grads = rng.normal(0, 0.5, (7, 11)), rng.normal(0, 1, (200, 7, 11)) * 10.0 ** rng.integers(-6, 2, (200, 1, 1))
    want = transcribed(w, grads, meta)
    np.testing.assert_allclose(run(w, grads, meta=meta), want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(run(w, grads, torch.float32, True, meta=meta), want, rtol=0, atol=2e-5)
    np.testing.assert_allclose(run(w, grads, torch.float32, False, meta=meta), want, rtol=0, atol=2e-5)


def test_without_meta_it_is_adam_but_for_where_epsilon_goes():
    rng = np.random.default_rng(1)
    w, grads = rng.normal(0, 0.5, (5, 5)), rng.normal(0, 1, (100, 5, 5))
    assert np.abs(run(w, grads, meta=0) - transcribed(w, grads, 0)).max() < 1e-7
    gaps = {}
    for size in (1.0, 1e-7):
        p = nn.Parameter(torch.tensor(w))
        adam = torch.optim.Adam([p], lr=0.005, weight_decay=1e-7 * 0)
        for g in grads * size:
            p.grad = torch.tensor(g)
            adam.step()
        gaps[size] = np.abs(run(w, grads * size, meta=0, weight_decay=0) - p.detach().numpy()).max()
    assert gaps[1.0] < 1e-6 < 1e-3 < gaps[1e-7]  # epsilon outside the bias correction matters where gradients are tiny


@pytest.mark.parametrize("fused", [True, False])
def test_vectors_are_never_metaplastic(fused):
    rng = np.random.default_rng(2)
    w, grads = rng.normal(0, 1, 9).astype(np.float32), rng.normal(0, 1, (20, 9))
    free, hard = (run(w, grads, torch.float32, fused, meta=m) for m in (0.0, 5.0))
    assert (free == hard).all()


def test_groups_have_their_own_meta():
    a, b = (nn.Parameter(torch.full((2, 2), 0.8)) for _ in range(2))
    opt = MetaplasticAdam([dict(params=[a], meta=0.0), dict(params=[b], meta=3.0)])
    a.grad = b.grad = torch.ones(2, 2)
    opt.step()
    assert (b.detach() - 0.8).abs().max() < (a.detach() - 0.8).abs().min()


@pytest.mark.parametrize("parts", [1, 2])
def test_large_layers_take_the_same_step_in_parallel(parts):
    rng, before = np.random.default_rng(3), torch.get_num_threads()
    w, grads = rng.normal(0, 0.5, (401, 401)), rng.normal(0, 1, (3, 401, 401))
    torch.set_num_threads(parts)
    try:
        np.testing.assert_allclose(run(w, grads, torch.float32, True), transcribed(w, grads, 1.35), atol=1e-6)
    finally:
        torch.set_num_threads(before)


def test_a_state_dict_continues_the_same_trajectory():
    rng = np.random.default_rng(4)
    w, grads = rng.normal(0, 0.5, (6, 6)), rng.normal(0, 1, (20, 6, 6))
    p = nn.Parameter(torch.tensor(w))
    opt = MetaplasticAdam([p])
    for i, g in enumerate(grads):
        if i == 10:
            kept, p = opt.state_dict(), nn.Parameter(p.detach().clone())
            opt = MetaplasticAdam([p], lr=1.0, meta=0)
            opt.load_state_dict(kept)
        p.grad = torch.tensor(g)
        opt.step()
    assert (p.detach().numpy() == run(w, grads)).all()


def test_sign_passes_gradients_up_to_one_and_not_beyond():
    x = torch.tensor([-1.0001, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0001], requires_grad=True)
    (sign(x) * torch.arange(1.0, 8)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize("binarise_input", [True, False])
def test_linear_gradients_are_those_of_the_signs(binarise_input):
    torch.manual_seed(0)
    layer, x = BinaryLinear(37, 23, binarise_input), (2 * torch.randn(19, 37)).requires_grad_()
    up = torch.randn(19, 23)
    (layer(x) * up).sum().backward()
    wb = layer.weight.detach().sign().requires_grad_()
    x2 = x.detach().clone().requires_grad_()
    (F.linear(sign(x2) if binarise_input else x2, wb) * up).sum().backward()
    torch.testing.assert_close(layer.weight.grad, wb.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-5, atol=1e-4)


def test_conv_gradients_are_those_of_the_signs():
    torch.manual_seed(0)
    layer, x = BinaryConv2d(2, 4, 3, stride=2, padding=1, binarise_input=True), torch.randn(3, 2, 9, 9)
    up = torch.randn(3, 4, 5, 5)
    (layer(x) * up).sum().backward()
    wb = layer.weight.detach().sign().requires_grad_()
    (F.conv2d(x.sign(), wb, stride=2, padding=1) * up).sum().backward()
    torch.testing.assert_close(layer.weight.grad, wb.grad)


def test_products_of_signs_are_exact():
    torch.manual_seed(0)
    layer, x = BinaryLinear(1024, 256, binarise_input=True), torch.randn(64, 1024)
    want = x.sign().double() @ layer.weight.detach().sign().double().t()
    assert (layer(x).double() == want).all()


def trained(evaluate=False):
    "A short stream of two tasks; with `evaluate`, each step is followed by a test under the first task's batch norm."
    torch.manual_seed(0)
    net, snapshots = binary_mlp(64, (32, 32)), []
    for _ in range(2):
        opt = MetaplasticAdam(net.parameters())
        for _ in range(30):
            x, y = torch.rand(20, 1, 8, 8), torch.randint(10, (20,))
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if evaluate and snapshots:
                net.eval()
                with using_bn(net, snapshots[0]), torch.no_grad():
                    net(x)
                recalibrated_bn(net.train(), [(x, y)])
        snapshots.append(bn_state(net))
    return net, snapshots


def test_testing_under_another_batch_norm_does_not_touch_training():
    (plain, _), (watched, _) = trained(), trained(evaluate=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values()))


LOADER = """
import sys, torch
from robustlit.metaplasticity.layers import binary_mlp, using_bn
kept = torch.load(sys.argv[1], weights_only=True)
net = binary_mlp(64, (32, 32)).eval()
net.load_state_dict(kept["net"])
for state, want in zip(kept["snapshots"], kept["logits"]):
    with using_bn(net, state), torch.no_grad():
        assert torch.equal(net(kept["x"]), want)
print("same")
"""


def test_a_fresh_process_predicts_the_same_for_every_task(tmp_path):
    net, snapshots = trained()
    x, logits = torch.rand(50, 1, 8, 8), []
    net.eval()
    for state in snapshots:
        with using_bn(net, state), torch.no_grad():
            logits.append(net(x))
    assert not torch.equal(*logits)
    torch.save(dict(net=net.state_dict(), snapshots=snapshots, x=x, logits=logits), tmp_path / "net.pt")
    done = subprocess.run([sys.executable, "-c", LOADER, str(tmp_path / "net.pt")], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


def test_recalibration_averages_all_batches_and_leaves_the_network_alone():
    torch.manual_seed(0)
    net, x = real_mlp(64, (16,)), torch.rand(400, 1, 8, 8)
    net.train()
    net[2].eval()
    before = [t.clone() for t in net.state_dict().values()]
    state = recalibrated_bn(net, [(xb, None) for xb in x.split(100)])
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values()))
    assert net.training and not net[2].training and net[2].momentum == 0.1
    h = net[1](x.flatten(1)).detach()
    torch.testing.assert_close(state["2"]["running_mean"], h.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state["2"]["running_var"], torch.stack([b.var(0) for b in h.split(100)]).mean(0))


@pytest.mark.parametrize("gamma, low, high", [("ones", 1, 1), ("uniform01", 0, 1)])
def test_gamma_starts_as_asked(gamma, low, high):
    torch.manual_seed(0)
    gains = bn_state(binary_mlp(64, (500,), gamma_init=gamma))["2"]["weight"]
    assert low <= gains.min() and gains.max() <= high and (gains.std() > 0.2) == (gamma == "uniform01")


@pytest.mark.parametrize("variant, shape", [("mnist", (1, 28, 28)), ("usps", (1, 28, 28)), ("cifar", (3, 32, 32))])
def test_every_convolutional_network_learns(variant, shape):
    torch.manual_seed(0)
    net, x, y = binary_convnet(shape, variant=variant), torch.rand(8, *shape), torch.arange(8)
    opt = MetaplasticAdam(net.parameters(), lr=0.005, meta=0)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(net(x - 0.5), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.7 * losses[0]


REFUSED = [
    (lambda: binary_mlp(0), "`inputs` must be a whole number >= 1, got 0"),
    (lambda: binary_mlp(64, (-5,)), "`hidden` must be a whole number >= 1, got -5"),
    (lambda: binary_mlp(64, gamma_init="one"), "did you mean 'ones'"),
    (lambda: binary_mlp(64)(torch.rand(2, 1, 28, 28)), "must have shape (..., 64)"),
    (lambda: BinaryLinear(3, 2, init="gauss"), "`init` is unknown"),
    (lambda: BinaryLinear(3, 2, init_width=-1), "`init_width`"),
    (lambda: BinaryConv2d(1, 2, 3)(torch.rand(2, 3, 8, 8)), "must have shape (n, 1, height, width)"),
    (lambda: binary_convnet(variant="vgg"), "`variant` is unknown"),
    (lambda: binary_convnet((1, 28, 20)), "must be square"),
    (lambda: binary_convnet((3, 8, 8), variant="cifar"), "too small"),
    (lambda: load_bn_state(binary_mlp(64), {}), "batch norm layers"),
    (lambda: recalibrated_bn(binary_mlp(64), []), "at least one batch"),
    (lambda: recalibrated_bn(binary_convnet(variant="usps"), []), "running statistics"),
    (lambda: MetaplasticAdam([torch.zeros(1, requires_grad=True)], lr=-1), "`lr`"),
    (lambda: MetaplasticAdam([torch.zeros(1, requires_grad=True)], meta=float("nan")), "`meta`"),
    (lambda: MetaplasticAdam([torch.zeros(1, requires_grad=True)], fused="yes"), "`fused`"),
]


@pytest.mark.parametrize("call, message", REFUSED, ids=[m for _, m in REFUSED])
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises((TypeError, ValueError)) as e:
        call()
    assert message in str(e.value)


class Plain(nn.Module):
    "A binary linear layer written with `detach` alone, as every tutorial does."

    def __init__(self, layer):
        super().__init__()
        self.weight, self.binarise_input = nn.Parameter(layer.weight.detach().clone()), layer.binarise_input

    def forward(self, x):
        w = self.weight.sign().detach() + self.weight - self.weight.detach()
        x = x.sign().detach() + x.clamp(-1, 1) - x.clamp(-1, 1).detach() if self.binarise_input else x
        return F.linear(x, w)


def both_forms(dtype=torch.float64):
    "A binary network and the same one in plain operations."
    torch.manual_seed(0)
    layers = [BinaryLinear(6, 5), nn.Tanh(), BinaryLinear(5, 4, True), nn.Tanh(), BinaryLinear(4, 3)]
    ours = nn.Sequential(*layers).to(dtype)
    return ours, nn.Sequential(*(Plain(m) if isinstance(m, BinaryLinear) else m for m in ours))


def slope_penalty(net, x, y):
    "The squared input gradient of the loss, and its own gradient with respect to the weights."
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net(x), y), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), list(net.parameters()))


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("integer_dot", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_input_gradient_penalty_has_the_gradient_of_the_plain_form(monkeypatch, dtype, integer_dot, onednn):
    monkeypatch.setattr("robustlit.metaplasticity.layers.INTEGER_DOT", integer_dot and layers.INTEGER_DOT)
    monkeypatch.setattr("robustlit.metaplasticity.layers.ONEDNN", onednn and layers.ONEDNN)
    ours, plain = both_forms(dtype)
    x, y = torch.randn(7, 6, dtype=dtype), torch.arange(7) % 3
    for a, b in zip(slope_penalty(ours, x, y), slope_penalty(plain, x, y)):
        assert b.norm() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_hessian_vector_product_of_the_weights_is_that_of_the_plain_form():
    ours, plain = both_forms()
    x, y, found = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 3, []
    along = [torch.randn(p.shape, dtype=p.dtype) for p in ours.parameters()]
    for net in (ours, plain):
        weights = list(net.parameters())
        slopes = torch.autograd.grad(F.cross_entropy(net(x), y), weights, create_graph=True)
        found.append(torch.autograd.grad(sum((g * v).sum() for g, v in zip(slopes, along)), weights))
    assert all(torch.allclose(a, b) and b.norm() > 0.1 for a, b in zip(*found))


def test_a_convolutional_network_has_second_derivatives_too():
    torch.manual_seed(0)
    conv, x = BinaryConv2d(2, 3, 3, padding=1, binarise_input=True), torch.randn(2, 2, 5, 5)
    net, found = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), BinaryLinear(75, 3)), []
    wb = conv.weight.detach().sign().requires_grad_()
    plain = nn.Sequential(nn.Tanh(), nn.Flatten(), Plain(net[3]))
    front = lambda x: F.conv2d(x.sign().detach() + x.clamp(-1, 1) - x.clamp(-1, 1).detach(), wb, padding=1)
    for f, weight in ((net, conv.weight), (lambda x: plain(front(x)), wb)):
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(z).square().sum(), z, create_graph=True)
        found += torch.autograd.grad(g.square().sum(), weight)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-2)


def loss_of(net, x, y):
    "One image's loss as a function of the weights."
    return lambda weights: F.cross_entropy(functional_call(net, weights, (x[None],)), y[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_image_by_image_are_those_of_each_image(dtype):
    net, _ = both_forms(dtype)
    x, y, weights = torch.randn(7, 6, dtype=dtype), torch.arange(7) % 3, dict(net.named_parameters())
    each = vmap(lambda x, y: grad(loss_of(net, x, y))(weights))(x, y)
    for i in range(len(x)):
        alone = torch.autograd.grad(loss_of(net, x[i], y[i])(weights), [*weights.values()])
        assert all(torch.allclose(each[k][i], g, atol=1e-6) for k, g in zip(weights, alone))


def test_networks_stacked_by_vmap_predict_as_each_does():
    torch.manual_seed(0)
    nets, x = [binary_mlp(16, (8,), 3).eval() for _ in range(3)], torch.rand(5, 1, 4, 4)
    stacked, buffers = torch.func.stack_module_state(nets)
    out = vmap(lambda w, b: functional_call(nets[0], (w, b), (x,)))(stacked, buffers)
    torch.testing.assert_close(out, torch.stack([net(x) for net in nets]))


def test_a_hessian_of_torch_func_is_the_plain_forms():
    ours, plain = both_forms()
    x, y = torch.randn(6, dtype=torch.float64), torch.tensor(1)
    of = lambda net: jacrev(jacrev(lambda x: F.cross_entropy(net(x[None]), y[None])))(x)
    assert of(plain).abs().max() > 0.1
    torch.testing.assert_close(of(ours), of(plain))


@pytest.mark.parametrize("derivative", [jacfwd, torch.func.hessian])
def test_forward_mode_is_refused_and_says_what_to_use(derivative):
    net, _ = both_forms()
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivative .* jacrev"):
        derivative(lambda x: net(x[None]).sum())(torch.randn(6, dtype=torch.float64))


@pytest.mark.parametrize("variant, shape", [("mnist", (1, 28, 28)), ("usps", (1, 28, 28)), ("cifar", (3, 32, 32))])
def test_a_convolutional_network_trains_under_autocast(variant, shape):
    torch.manual_seed(0)
    net, x, y = binary_convnet(shape, variant=variant), torch.rand(8, *shape) - 0.5, torch.arange(8)
    net.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(net(x), y)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_gradient_under_autocast_is_near_the_full_one():
    torch.manual_seed(0)
    layer, x, up = BinaryLinear(40, 30, True), torch.randn(9, 40), torch.randn(9, 30)
    found = []
    for on in (False, True):
        z = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            out = layer(z)
        assert out.dtype == (torch.bfloat16 if on else torch.float32)
        found.append(torch.autograd.grad((out.float() * up).sum(), [z, layer.weight]))
    for full, half in zip(*found):
        torch.testing.assert_close(half, full, rtol=0.02, atol=0.1)
