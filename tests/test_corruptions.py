"""Corruptions against a plain transcription of their definitions, one image at a time, in numpy, scipy, scikit-image and Pillow."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage as ndi
from scipy import stats
from skimage import color, feature, filters, transform, util

from robustlit import corruptions as C
from robustlit import image_operations as ops
from robustlit.corruptions import CALIBRATIONS, COMPAT, CORRUPTIONS, GROUPS, blur, corrupt, corruption_table, noise
from robustlit.data import as_images, load

ONCE = ("inverse", "stripe", "canny_edges")  # one strength only
FIXED = ("gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "saturate", "quantize")
FIXED += ("scale", "inverse", "stripe", "canny_edges")
RANDOM = tuple(n for n in CORRUPTIONS if n not in (*FIXED, "jpeg_compression"))


# ---------------------------------------------------------------- the transcription: x is (h, w, channels) in [0, 1]


def per_channel(f, x):
    return np.stack([f(x[..., k]) for k in range(x.shape[-1])], -1)


def grey(x):
    return x[..., :1] if x.shape[-1] == 1 else (x @ [0.299, 0.587, 0.114])[..., None]


def gaussian_noise(x, c, rng):
    return x + rng.normal(size=x.shape, scale=c)


def shot_noise(x, c, rng):
    return rng.poisson(x * c) / c


def impulse_noise(x, c, rng):
    return util.random_noise(x, mode="s&p", amount=c, rng=rng)


def speckle_noise(x, c, rng):
    return x + x * rng.normal(size=x.shape, scale=c)


def gaussian_blur(x, c, rng=None):
    return filters.gaussian(x, c, channel_axis=-1)


def defocus_blur(x, c, rng=None):
    radius, alias = c
    r, half = (8, 1) if radius <= 8 else (radius, 2)
    i = np.arange(-r, r + 1)
    disk = (i[:, None] ** 2 + i**2 <= radius**2).astype(float)
    disk /= disk.sum()
    w = np.exp(-0.5 * (np.arange(-half, half + 1) / alias) ** 2)
    for axis in (0, 1):
        disk = ndi.correlate1d(disk, w / w.sum(), axis, mode="mirror")
    return per_channel(lambda p: ndi.correlate(p, disk, mode="mirror"), x)


def glass_blur(x, c, rng=None, offsets=None, aliased=False):
    sigma, delta, sweeps = c
    x = filters.gaussian(x, sigma, channel_axis=-1)
    h, w = x.shape[:2]
    for s in range(sweeps):
        for a, i in enumerate(range(h - delta, delta, -1)):
            for b, j in enumerate(range(w - delta, delta, -1)):
                dy, dx = rng.integers(-delta, delta, 2) if offsets is None else offsets[:, s, a, b]
                kept = x[i, j].copy()
                x[i, j] = x[i + dy, j + dx]
                if not aliased:
                    x[i + dy, j + dx] = kept
    return filters.gaussian(x, sigma, channel_axis=-1)


def smear(p, radius, sigma, angle):
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    for i in range(2 * radius + 1):
        at = 2 * radius + round(i * math.sin(angle)), 2 * radius + round(i * math.cos(angle))
        kernel[at] += math.exp(-(i**2) / (2 * sigma**2))
    return ndi.correlate(p, kernel / kernel.sum(), mode="nearest")


def motion_blur(x, c, rng):
    angle = rng.uniform(-math.pi / 4, math.pi / 4)
    return per_channel(lambda p: smear(p, *c, angle), x)


def magnify(p, factor):
    h = p.shape[0]
    crop = math.ceil(h / factor)
    top = (h - crop) // 2
    big = ndi.zoom(p[top : top + crop, top : top + crop], factor, order=1)
    trim = (big.shape[0] - h) // 2
    return big[trim : trim + h, trim : trim + h]


def zoom_blur(x, c, rng=None):
    factors = np.arange(*c)
    return (x + sum(per_channel(lambda p, f=f: magnify(p, f), x) for f in factors)) / (len(factors) + 1)


def snow(x, c, rng=None, field=None, angle=None):
    mean, std, zoom, threshold, radius, sigma, mix = c
    field = rng.normal(mean, std, x.shape[:2]) if field is None else field
    angle = rng.uniform(-0.75 * math.pi, -0.25 * math.pi) if angle is None else angle
    layer = magnify(field, zoom)
    layer[layer < threshold] = 0
    layer = smear(np.uint8(layer.clip(0, 1) * 255) / 255, radius, sigma, angle)[..., None]
    return mix * x + (1 - mix) * np.maximum(x, 1.5 * grey(x) + 0.5) + layer + np.rot90(layer, 2)


def frost(x, c, rng):
    bank = C._frost_textures()[rng.integers(5)].permute(1, 2, 0).numpy()
    top, left = rng.integers(0, 640 - x.shape[0], 2)
    crop = bank[top : top + x.shape[0], left : left + x.shape[1]]
    return c[0] * x + c[1] * (crop if x.shape[-1] == 3 else grey(crop))


def plasma(wibble, rng=None, given=None, size=256):
    out, strength, step = np.zeros((size, size)), 1.0, size
    draw = (lambda rows, columns, n: rng.uniform(-1, 1, (n, n))) if given is None else (lambda r, s, n: given[r, s])
    while step >= 2:
        half = step // 2
        full, mid, n = slice(0, size, step), slice(half, size, step), size // step
        corner = out[full, full]
        square = corner + np.roll(corner, -1, 0)
        square = square + np.roll(square, -1, 1)
        out[mid, mid] = square / 4 + strength * draw(mid, mid, n)
        centre, corner = out[mid, mid], out[full, full]
        total = centre + np.roll(centre, 1, 0) + corner + np.roll(corner, -1, 1)
        out[full, mid] = total / 4 + strength * draw(full, mid, n)
        total = centre + np.roll(centre, 1, 1) + corner + np.roll(corner, -1, 0)
        out[mid, full] = total / 4 + strength * draw(mid, full, n)
        step, strength = half, strength / wibble**2
    out -= out.min()
    return out / out.max()


def fog(x, c, rng=None, given=None):
    layer = plasma(c[1], rng, given)[: x.shape[0], : x.shape[1], None]
    return (x + c[0] * layer) * x.max() / (x.max() + c[0])


def brightness(x, c, rng=None):
    if x.shape[-1] == 1:
        return x + c
    hsv = color.rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + c, 0, 1)
    return color.hsv2rgb(hsv)


def saturate(x, c, rng=None):
    if x.shape[-1] == 1:  # MNIST-C
        hsv = np.clip(color.rgb2hsv(np.repeat(x, 3, -1)) * c[0] + c[1], 0, 1)
        return color.rgb2gray(color.hsv2rgb(hsv))[..., None]
    hsv = color.rgb2hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * c[0] + c[1], 0, 1)
    return color.hsv2rgb(hsv)


def contrast(x, c, rng=None):
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * c + mean


def pixelate(x, c, rng=None):
    h, w = x.shape[:2]

    def one(p):
        small = Image.fromarray(p.astype(np.float32)).resize((int(w * c), int(h * c)), Image.BOX)
        return np.asarray(small.resize((w, h), Image.BOX))

    return per_channel(one, x)


def elastic_transform(x, c, rng=None, jitter=None, field=None, black=None):
    h, w = x.shape[:2]
    strength, sigma, affine = (v * min(h, w) for v in c)
    jitter = rng.uniform(-affine, affine, (3, 2)) if jitter is None else jitter
    field = rng.uniform(-1, 1, (2, h, w)) if field is None else field
    black = x.shape[-1] == 1 if black is None else black
    a = min(h, w) // 3
    corners = np.array([h // 2, w // 2]) + a * np.array([[1, 1], [1, -1], [-1, -1]])
    back = np.linalg.solve(np.c_[corners + jitter, np.ones(3)], corners)
    mode = "grid-constant" if black else "mirror"
    x = per_channel(lambda p: ndi.affine_transform(p, back[:2].T, back[2], order=1, mode=mode), x)
    soft = (lambda f: ndi.gaussian_filter(f, sigma, mode="reflect", truncate=3)) if sigma else lambda f: f
    at = np.mgrid[:h, :w] + strength * np.stack([soft(f) for f in field])
    mode = "grid-constant" if black else "reflect"
    return per_channel(lambda p: ndi.map_coordinates(p, at, order=1, mode=mode), x)


def jpeg_compression(x, c, rng=None):
    file = io.BytesIO()
    Image.fromarray(np.uint8(x * 255 + 0.5).squeeze()).save(file, "JPEG", quality=c)
    return np.asarray(Image.open(file)).reshape(x.shape) / 255


def spatter(x, c, rng):
    mean, std, sigma, threshold, strength, mud = c
    layer = filters.gaussian(rng.normal(mean, std, x.shape[:2]), sigma)
    layer[layer < threshold] = 0
    if mud or x.shape[-1] == 1:
        cover = filters.gaussian((layer > threshold).astype(float), strength)
        cover[cover < 0.8] = 0
        paint = np.array([63, 42, 20] if x.shape[-1] == 3 else [63]) / 255
        return x * (1 - cover[..., None]) + cover[..., None] * paint
    far = ndi.distance_transform_edt(~feature.canny(layer, 0, 50 / 255, 150 / 255)).clip(0, 20)
    far = ndi.correlate(ndi.uniform_filter(far, 3), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])).clip(0)
    amount = layer * ndi.uniform_filter(far, 3)
    return x + (amount / max(amount.max(), 1e-6) * strength)[..., None] * np.array([175, 238, 238]) / 255


def quantize(x, c, rng=None):
    return np.floor(x * (2**c - 1) + 0.5) / (2**c - 1)


def warp(x, about, **how):
    centre = (np.array(x.shape[1::-1]) - 1) / 2
    move = (
        transform.SimilarityTransform(translation=-centre) + about + transform.SimilarityTransform(translation=centre)
    )
    return transform.warp(x, inverse_map=move, **how)


def shear(x, c, rng=None, side=None):
    return warp(x, transform.AffineTransform(shear=c * (rng.choice([-1, 1]) if side is None else side)))


def rotate(x, c, rng=None, side=None):
    return warp(x, transform.AffineTransform(rotation=c * (rng.choice([-1, 1]) if side is None else side)))


def scale(x, c, rng=None):
    return warp(x, transform.AffineTransform(scale=c))


def translate(x, c, rng=None, side=None):
    side = rng.choice([-1, 1], 2) if side is None else np.array(side)
    return warp(x, transform.AffineTransform(translation=side * c * min(x.shape[:2]) / 28))


def inverse(x, c=None, rng=None):
    return 1 - x


def stripe(x, c=None, rng=None):
    x, k = x.copy(), round(x.shape[1] / 4)
    x[:, :k], x[:, -k:] = 1 - x[:, :k], 1 - x[:, -k:]
    return x


def canny_edges(x, c=None, rng=None):
    return per_channel(lambda p: feature.canny(p).astype(float), x)


def stroke(x, c, rng, kind):
    h, w = x.shape[:2]
    a, b = rng.uniform(0.1, 0.9, 2) * (h - 1)
    rows, columns = np.mgrid[:h, :w]
    slope, unit = (b - a) / (w - 1), 28 / min(h, w)
    length = math.hypot(1, slope)
    along, away = (columns + slope * (rows - a)) / length * unit, (rows - a - slope * columns) / length * unit
    if kind == "zigzag":
        away = (away - (abs((along / 7 + rng.uniform()) % 1 - 0.5) * 4 - 1) * 2.5) / math.hypot(1, 10 / 7)
    away = abs(away)
    if kind == "dotted_line":
        away = np.maximum(away, abs((along + rng.uniform() * 4) % 4 - 2) - 1 + c / 2)
    return np.maximum(x, ((c / 2 - away) / unit + 0.5).clip(0, 1)[..., None])


def line(x, c, rng):
    return stroke(x, c, rng, "line")


def dotted_line(x, c, rng):
    return stroke(x, c, rng, "dotted_line")


def zigzag(x, c, rng):
    return stroke(x, c, rng, "zigzag")


PLAIN = {name: globals()[name] for name in CORRUPTIONS}


# ---------------------------------------------------------------- helpers


def pictures(n, channels, h=28, w=None, seed=0):
    "Smooth random pictures with flat black parts, (n, channels, h, w), of bytes."
    g = torch.Generator().manual_seed(seed)
    x = blur(torch.rand(n, channels, h, w or h, generator=g), 1.5)
    x = ((x - 0.42) * 5).clamp(0, 1)
    return (x * 255).round() / 255


def digits(n, channels, side):
    "Real ones; a colour image shows a different digit in each channel."
    x = as_images(load("digits").x_test[: n * channels]).view(n, channels, 8, 8)
    return F.interpolate(x, (side, side), mode="bilinear")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def to_plain(x):
    return x.permute(0, 2, 3, 1).double().numpy()


def assert_same(ours, plain, atol=2e-5):
    np.testing.assert_allclose(to_plain(ours), np.clip(np.stack(list(plain)), 0, 1), atol=atol)


def rows(name, calibration):
    return C._known[name].table[calibration]


# ---------------------------------------------------------------- golden


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("name", FIXED)
def test_fixed_corruptions_follow_the_transcription(name, calibration):
    for channels, size in ((1, 28), (3, 32)):
        if name == "saturate" and channels == 1 and calibration != "mnist_c":
            continue  # a grey image has no saturation
        x = pictures(3, channels, size)
        for severity, c in enumerate(rows(name, calibration), 1):
            ours = corrupt(x, name, severity, calibration)
            assert_same(ours, (PLAIN[name](p, c) for p in to_plain(x)))


@pytest.mark.parametrize("channels, quality", [(1, 7), (1, 25), (1, 80), (3, 7), (3, 18), (3, 50), (3, 80)])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (37, 21), (8, 8)])
def test_jpeg_is_pillows_up_to_rounding(channels, quality, size):
    x = pictures(60, channels, *size)
    ours = C._known["jpeg_compression"].run(x, quality, None)
    plain = np.stack([jpeg_compression(p, quality) for p in to_plain(x)])
    far = np.abs(to_plain(ours) - plain) * 255
    assert far.mean() < 0.15
    assert (far > 2.5).mean() < 0.012  # a coefficient on the other side of a rounding moves a block
    assert np.abs(plain - to_plain(x)).mean() * 255 > 20 * far.mean()


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_elastic_given_its_displacement(calibration):
    x = pictures(4, 3, 28)
    black = calibration == "mnist_c"
    for strength, sigma, affine in rows("elastic_transform", calibration):
        c = tuple(28 * v for v in (strength, sigma, affine))
        jitter = (torch.rand(4, 3, 2, generator=seeded()) * 2 - 1) * min(c[2], 2)
        field = torch.rand(4, 2, 28, 28, generator=seeded()) * 2 - 1
        ours = C._stretch(x, jitter, field, *c[:2], black)
        given = zip(to_plain(x), jitter.double().numpy(), field.double().numpy())
        plain = (elastic_transform(p, (strength, sigma, affine), None, j, f, black) for p, j, f in given)
        assert_same(ours, plain, atol=2e-4)


@pytest.mark.parametrize("wibble", [1.1, 1.7, 3])
def test_fog_given_its_noise(wibble):
    x, given = pictures(3, 3, 28), torch.rand(3, 256, 256, generator=seeded()) * 2 - 1
    layer = C._plasma(given, wibble)
    np.testing.assert_allclose(layer[0], plasma(wibble, given=given[0].double().numpy()), atol=1e-5)
    assert layer.amin() == 0 and layer.amax() == 1
    ours = C._add_fog(x, layer[:, None, :28, :28], 2.5)
    assert_same(ours, (fog(p, (2.5, wibble), given=f.double().numpy()) for p, f in zip(to_plain(x), given)))


@pytest.mark.parametrize("wibble", [1.1, 1.7, 2, 3])
@pytest.mark.parametrize("h, w", [(8, 8), (28, 28), (40, 9), (130, 200), (300, 20)])
def test_a_corner_of_fog_is_that_of_the_whole_map(wibble, h, w):
    streams = lambda: ops._Streams(torch.randint(2**62, (5,), generator=seeded()), "cpu")
    size = 2 * (C._fog_size(h, w),)
    whole, after, mine = C._plasma(streams().uniform(*size, low=-1, high=1), wibble), streams(), streams()
    corner = C._plasma_corner(mine, h, w, wibble)
    assert (corner - whole[:, :h, :w]).abs().max() < 1 / 500
    after.uniform(*size)
    assert torch.equal(mine.bits(3), after.bits(3))


@pytest.mark.parametrize("c", [(0.6, 1, 1), (1, 2, 3), (1.5, 4, 2)])
@pytest.mark.parametrize("aliased", [False, True])
def test_glass_given_its_swaps(c, aliased):
    sigma, delta, sweeps = c
    x, n = pictures(3, 3, 20), 20 - 2 * delta
    offsets = torch.randint(-delta, delta, (3, 2, sweeps, n, n), generator=seeded())
    moves = torch.ones(3, sweeps, n, n, dtype=torch.bool)
    ours = blur(ops._shuffle(blur(x, sigma), delta, *offsets.unbind(1), moves, aliased), sigma)
    assert_same(ours, (glass_blur(p, c, None, o.numpy(), aliased) for p, o in zip(to_plain(x), offsets)))


def test_snow_and_motion_given_their_angles():
    x, angle = pictures(6, 3, 28), torch.linspace(-2.2, -0.8, 6)
    for c in rows("snow", "imagenet_c") + rows("snow", "cifar_c"):
        field = torch.randn(6, 1, 28, 28, generator=seeded()) * c[1] + c[0]
        layer = C._flakes(field, *c[2:6], angle)
        ours = (C._pale(x, c[6]) + layer + layer.flip(2, 3)).clamp(0, 1)
        given = zip(to_plain(x), field[:, 0].double().numpy(), angle.tolist())
        ours, plain = to_plain(ours), np.stack([snow(p, c, None, f, a) for p, f, a in given]).clip(0, 1)
        assert np.abs(ours - plain).mean() < 1e-4  # a flake on the edge of two bytes may fall to either
        assert np.abs(ours - plain).max() < 1.1 / 255
    x, angle = pictures(6, 1, 28), torch.linspace(-0.78, 0.78, 6)
    for radius, sigma in ((6, 1), (10, 3), (20, 15)):
        plain = (smear(p[..., 0], radius, sigma, a)[..., None] for p, a in zip(to_plain(x), angle.tolist()))
        assert_same(ops._smear(x, radius, sigma, angle), plain, atol=1e-3)  # weights below 1e-5 are left out


@pytest.mark.parametrize("name", ["shear", "rotate", "translate"])
def test_moves_are_one_of_two_sides(name):
    x = pictures(16, 1, 28)
    sides = [-1, 1] if name != "translate" else [(i, j) for i in (-1, 1) for j in (-1, 1)]
    for severity, c in enumerate(rows(name, "mnist_c"), 1):
        ours, seen = to_plain(corrupt(x, name, severity, generator=seeded())), set()
        for p, got in zip(to_plain(x), ours):
            far = [np.abs(PLAIN[name](p, c, side=s) - got).max() for s in sides]
            assert min(far) < 1e-4
            seen.add(sides[int(np.argmin(far))])
        assert seen == set(sides)


def test_mud_and_frost_by_their_parts():
    layer = blur(torch.randn(3, 1, 28, 28, generator=seeded()) * 0.3 + 0.65, 1)
    layer = torch.where(layer < 0.65, 0, layer)
    cover = [filters.gaussian((p[..., 0] > 0.65).astype(float), 1.5) for p in to_plain(layer)]
    assert_same(C._mud(layer, 0.65, 1.5), (np.where(p < 0.8, 0, p)[..., None] for p in cover))
    bank = C._frost_textures()
    assert bank.shape == (5, 3, 640, 640) and bank.amin() >= 0 and bank.amax() <= 1
    got = C._crop(bank, torch.tensor([1]), torch.tensor([630]), torch.tensor([5]), 28, 28)
    assert torch.equal(got[0], bank[1].roll(-630, 1)[:, :28, 5:33])


# ---------------------------------------------------------------- distributions


def test_noise_has_the_variance_it_says():
    x = torch.full((400, 1, 28, 28), 0.5)
    for severity, c in enumerate(rows("gaussian_noise", "cifar_c"), 1):
        d = corrupt(x, "gaussian_noise", severity, "cifar_c", seeded()) - x
        assert d.std().item() == pytest.approx(c, rel=0.01) and abs(d.mean()) < 1e-3
        assert stats.kstest((d / c).flatten()[:20000].numpy(), "norm").pvalue > 1e-4
    for severity, c in enumerate(rows("speckle_noise", "cifar_c"), 1):
        assert (corrupt(x, "speckle_noise", severity, "cifar_c", seeded()) - x).std().item() == pytest.approx(
            c / 2, rel=0.01
        )
    for severity, c in enumerate(rows("shot_noise", "cifar_c"), 1):
        counts = corrupt(x * 0.7, "shot_noise", severity, "cifar_c", seeded()) * c
        assert counts.sub(counts.round()).abs().max() < 1e-3
        assert counts.mean().item() == pytest.approx(0.35 * c, rel=0.01)
        assert counts.var().item() == pytest.approx(0.35 * c, rel=0.02)


@pytest.mark.parametrize("rate, c", [(0.2, 5), (0.0013, 60), (0.9, 500), (1.0, 3), (0.0, 12)])
def test_poisson_numbers_have_the_poisson_distribution(rate, c):
    streams = ops._Streams(torch.randint(2**62, (1000,), generator=seeded()), "cpu")
    x = torch.full((1000, 1, 16, 16), rate)
    k = ops._poisson(x, c, lambda: streams.uniform(1, 16, 16)).flatten().numpy()
    if rate == 0:
        assert not k.any()
        return
    mean = x.double().mean().item() * c
    low, high = stats.poisson.ppf([1e-3, 1 - 1e-3], mean).astype(int)
    values = np.arange(low, high + 1)
    want = stats.poisson.pmf(values, mean) * k.size
    got = np.array([(k == v).sum() for v in values])
    keep = want > 5
    assert ((got - want)[keep] ** 2 / want[keep]).sum() < stats.chi2.ppf(1 - 1e-5, keep.sum())


def test_impulses_are_half_salt_half_pepper():
    x = torch.full((300, 3, 28, 28), 0.5)
    for severity, c in enumerate(rows("impulse_noise", "imagenet_c"), 1):
        y = corrupt(x, "impulse_noise", severity, "imagenet_c", seeded())
        assert (y == 1).float().mean().item() == pytest.approx(c / 2, rel=0.03)
        assert (y == 0).float().mean().item() == pytest.approx(c / 2, rel=0.03)
        assert ((y == 0) | (y == 0.5) | (y == 1)).all()


def test_images_and_neighbouring_pixels_draw_independently():
    z = ops._Streams(torch.randint(2**62, (300,), generator=seeded()), "cpu").normal(4000).double()
    assert np.abs(np.corrcoef(z) - np.eye(300)).max() < 0.09  # 5.7 standard errors
    for lag in (1, 2, 28, 784):
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 5 / math.sqrt(z[:, lag:].numel())
    bits = ops._Streams(torch.arange(300), "cpu").bits(1000)  # neighbouring seeds
    for k in range(32):
        assert abs(((bits >> k) & 1).float().mean() - 0.5) < 5 * 0.5 / math.sqrt(bits.numel())


def test_plain_noise_is_that_of_its_variance():
    x = torch.full((200, 1, 28, 28), 0.5)
    assert noise(x, 0.01, seeded()).var().item() == pytest.approx(0.01, rel=0.01)
    assert torch.equal(noise(x, 0.0, seeded()), x)


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", *GROUPS["blur"], "gaussian_blur"]
)
@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_severity_means_further_from_the_image(name, calibration):
    for channels, size in ((1, 28), (3, 32)):
        x = digits(90, channels, size)
        far = [(corrupt(x, name, s, calibration, seeded()) - x).abs().mean().item() for s in range(1, 6)]
        if name == "defocus_blur" and calibration == "cifar_c":
            far = far[:1] + far[3:]  # radii below 1 are one pixel, and the smoothing of 4 is weaker than that of 3
        if (name, calibration) == ("glass_blur", "cifar_c"):
            far = [max(far[:3]), min(far[3:])]  # ordered by sweeps alone: severity 4 blurs less than 3
        assert all(a <= b for a, b in zip(far, far[1:])), far
        assert far[0] > 1e-3


def test_gaussian_blur_is_isotropic_unless_asked_otherwise():
    x = pictures(5, 1)
    assert torch.allclose(corrupt(x.mT, "gaussian_blur"), corrupt(x, "gaussian_blur").mT, atol=1e-6)
    seed = corrupt(x, "gaussian_blur", 1, "report", compat="vertical_blur")
    assert_same(seed, (ndi.gaussian_filter1d(p, 1, axis=0, mode="nearest") for p in to_plain(x)))
    assert not torch.allclose(corrupt(x.mT, "gaussian_blur", compat="vertical_blur"), seed.mT, atol=1e-2)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 9, 20)])
def test_range_shape_type_and_repetition(name, shape):
    x = torch.rand(5, *shape, generator=seeded())
    for calibration in ("auto", *CALIBRATIONS):
        for severity in (1, 5):
            y = corrupt(x, name, severity, calibration, seeded())
            assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()
            assert y.amin() >= 0 and y.amax() <= 1
            assert torch.equal(y, corrupt(x, name, severity, calibration, seeded()))
    assert corrupt(x[:0], name).shape == (0, *shape)
    assert corrupt(x.double(), name, generator=seeded()).dtype == torch.float64
    black = corrupt(torch.zeros(2, *shape), name, 3, generator=seeded())
    assert black.isfinite().all()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(name, channels, monkeypatch):
    x = pictures(23, channels, 28)
    together = corrupt(x, name, 3, generator=seeded(3))
    g = seeded(3)
    parts = torch.cat([corrupt(part, name, 3, generator=g) for part in x.split(5)])
    assert (parts - together).abs().max() < 1e-5
    some = [20, 3, 3]
    assert (corrupt(x[some], name, 3, generator=seeded(3), index=some) - together[some]).abs().max() < 1e-5
    monkeypatch.setattr(C, "_piece", lambda x, name: 4)
    assert (corrupt(x, name, 3, generator=seeded(3)) - together).abs().max() < 1e-5
    if name in RANDOM:
        assert (corrupt(x, name, 3, generator=seeded(4)) - together).abs().max() > 1e-3
        same = corrupt(x[:1].expand(8, -1, -1, -1), name, 3, generator=seeded(1))
        assert same.std(0).amax() > 1e-3


def test_the_global_generator_is_used_and_moved_on():
    x = pictures(3, 1)
    torch.manual_seed(5)
    first, second = corrupt(x, "gaussian_noise"), corrupt(x, "gaussian_noise")
    torch.manual_seed(5)
    assert torch.equal(corrupt(x, "gaussian_noise"), first) and not torch.equal(first, second)


def test_input_is_left_alone():
    for channels in (1, 3):
        x = pictures(2, channels)
        kept = x.clone()
        for name in CORRUPTIONS:
            corrupt(x, name, 2)[:] = 0
            assert torch.equal(x, kept), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_another_device_gives_the_same(name):
    for channels in (1, 3):
        x = pictures(8, channels)
        here, there = (corrupt(x.to(d), name, 3, generator=seeded()) for d in ("cpu", "cuda"))
        assert there.is_cuda and (here - there.cpu()).abs().mean() < 1e-3


def test_compat_switches_do_what_they_say():
    grey_x, x = pictures(4, 1), pictures(4, 3)
    assert torch.allclose(corrupt(grey_x, "saturate", 1, "report", compat="dimming"), 0.3 * grey_x)
    assert torch.equal(corrupt(grey_x, "saturate", 1, "report"), grey_x)
    args = dict(calibration="report", severity=1)
    straight = corrupt(x, "motion_blur", generator=seeded(), **args)
    assert torch.equal(corrupt(x, "motion_blur", generator=seeded(), compat=["bgr_motion"], **args), straight.flip(1))
    on_black = corrupt(torch.zeros(4, 3, 28, 28), "snow", generator=seeded(), **args)
    assert torch.allclose(on_black[:, 0], on_black[:, 2])
    on_black = corrupt(torch.zeros(4, 3, 28, 28), "snow", generator=seeded(), compat="coloured_snow", **args)
    assert not torch.allclose(on_black[:, 0], on_black[:, 2])
    glass = [
        corrupt(x, "glass_blur", 3, "imagenet_c", seeded(), compat=c) for c in ((), "aliased_glass", "vertical_blur")
    ]
    assert not torch.allclose(glass[0], glass[1]) and not torch.allclose(glass[0], glass[2])
    cut, full = (corrupt(x, "contrast", 2, compat=c) for c in ("truncate", ()))
    assert torch.equal((full * 255).floor() / 255, cut)
    assert set(COMPAT) == {"vertical_blur", "dimming", "bgr_motion", "coloured_snow", "aliased_glass", "truncate"}


def test_auto_takes_the_calibration_by_shape():
    for shape, want in (((1, 28, 28), "mnist_c"), ((3, 32, 32), "cifar_c"), ((3, 72, 40), "imagenet_c")):
        x = pictures(2, *shape)
        assert torch.equal(corrupt(x, "contrast", 4), corrupt(x, "contrast", 4, want))


def test_the_table_is_complete():
    table = corruption_table()
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 30 == len(C._known)
    assert list(table.name.unique()) == list(CORRUPTIONS) and len(table) == 30 * len(CALIBRATIONS)
    assert all(len(r) == 5 for known in C._known.values() for r in known.table.values())
    one = table[(table.name == "speckle_noise") & (table.calibration == "report")].iloc[0]
    assert [one[s] for s in range(1, 6)] == ["0.2", "0.35", "0.45", "0.6", "0.7"]
    assert C.severities("glass_blur", "report")[4] == dict(sigma=1.1, delta=3, sweeps=2)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change, error, says",
    [
        (dict(name="gausian_noise"), ValueError, "gaussian_noise"),
        (dict(severity=0), ValueError, "from 1 to 5"),
        (dict(severity=6), ValueError, "from 1 to 5"),
        (dict(severity=1.5), TypeError, "severity"),
        (dict(calibration="cifar"), ValueError, "cifar_c"),
        (dict(compat="vertical"), ValueError, "vertical_blur"),
        (dict(x=torch.rand(2, 1, 7, 8)), ValueError, "8 x 8"),
        (dict(x=torch.rand(2, 2, 8, 8)), ValueError, "1 or 3 channels"),
        (dict(x=torch.rand(1, 8, 8)), ValueError, "shape"),
        (dict(x=torch.rand(2, 1, 8, 8) + 0.5), ValueError, "[0, 1]"),
        (dict(x=torch.full((2, 1, 8, 8), math.nan)), ValueError, "NaN"),
        (dict(x=torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), TypeError, "float"),
        (dict(x=np.zeros((2, 1, 8, 8))), TypeError, "torch.Tensor"),
        (dict(index=[0]), ValueError, "index"),
        (dict(index=[0, -1]), ValueError, "index"),
        (dict(index=[0, 1], generator=None), ValueError, "generator"),
    ],
)
def test_bad_input_is_refused(change, error, says):
    good = dict(x=torch.rand(2, 1, 8, 8), name="gaussian_noise", severity=1, generator=seeded())
    corrupt(**good)
    with pytest.raises(error) as e:
        corrupt(**good | change)
    assert says in str(e.value)
