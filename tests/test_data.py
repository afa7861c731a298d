"""Datasets: what is read, how it is split and batched, the cache, and what is refused."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import robustlit.sources as rs
from robustlit.data import Batches, Dataset, as_images, available, flip_and_crop, load, patch_dataset

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "One empty cache and one empty user's data folder for all tests here."
    with pytest.MonkeyPatch.context() as m:
        folder = tmp_path_factory.mktemp("cache")
        m.setenv("ROBUSTLIT_CACHE", str(folder))
        home = tmp_path_factory.mktemp("home")
        m.setattr(rs.platformdirs, "user_data_path", lambda *_, **__: home / "robustlit")
        m.delenv("ROBUSTLIT_DATA", raising=False)
        yield folder


REAL = Path(os.environ.get("ROBUSTLIT_DATA") or SHARED)


def real(path):
    "The real data folder, if `path` is in it."
    if not (REAL / path).exists():
        pytest.skip(f"no {path} in ROBUSTLIT_DATA")
    return REAL


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(seed, mode="RGB", size=(12, 10)):
    w, h = size
    a = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    return Image.fromarray(a).convert(mode)


def snapshot(folder):
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.fixture
def pets(tmp_path):
    "Two classes with train and test, five formats, several sizes, colour and grey."
    formats = ["png", "jpg", "webp", "bmp", "GIF"]
    for part, n in (("train", 5), ("test", 2)):
        for c, kind in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / part / kind
            folder.mkdir(parents=True)
            for i in range(n):
                im = picture(10 * n + 5 * c + i, "L" if i == 1 else "RGB", (12 + i, 10 + 3 * i))
                im.save(folder / f"{i}.{formats[i]}")
    (tmp_path / "pets" / "train" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".DS_Store").write_text("nor this")
    return tmp_path / "pets"


def zipped(folder, path, top=""):
    with zipfile.ZipFile(path, "w") as z:
        for p in sorted(folder.rglob("*")):
            z.write(p, top + p.relative_to(folder).as_posix())
    return path


# digits, splits, subsets


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    d = load(valid=0)
    x, y = load_digits(return_X_y=True)
    got = torch.cat([d.x_train, d.x_test]).flatten(1).float() * 16 / 255
    order = lambda a, b: sorted(zip(a.round().int().tolist(), b.tolist()))
    assert order(got, torch.cat([d.y_train, d.y_test])) == order(torch.tensor(x), torch.tensor(y))
    assert d.x_train.dtype == torch.uint8 and d.y_train.dtype == torch.int64 and len(d.x_valid) == 0
    assert d.x_train.max() == 255 and d.shape == (1, 8, 8) and d.n_classes == 10


def test_split_ignores_the_global_generator_and_leaves_it_alone():
    torch.manual_seed(1)
    a, state = load(seed=3), torch.get_rng_state()
    torch.manual_seed(2)
    b = load(seed=3)
    assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("x_train", "y_train", "x_valid", "x_test"))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_split_depends_on_the_seed_but_the_test_set_does_not():
    a, b = load(seed=0), load(seed=1)
    assert not torch.equal(a.x_valid, b.x_valid)
    assert torch.equal(a.x_test, b.x_test) and torch.equal(a.y_test, b.y_test)


def test_validation_images_are_taken_out_of_training():
    whole, cut = load(valid=0), load(valid=0.25)
    rows = lambda *xs: sorted(torch.cat([x.flatten(1) for x in xs]).tolist())
    assert rows(cut.x_train, cut.x_valid) == rows(whole.x_train)
    assert len(cut.x_valid) == round(0.25 * len(whole.x_train))
    share = torch.bincount(whole.y_train) * 0.25
    assert (torch.bincount(cut.y_valid) - share).abs().max() < 1
    assert len(load(valid=7).x_valid) == 7


def test_moments_are_those_of_the_training_images():
    d = load(n_train=200)
    x = d.x_train.double() / 255
    assert d.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert d.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_moments_are_by_channel_and_harmless_when_constant():
    x = torch.randint(256, (1001, 3, 4, 4), dtype=torch.uint8, generator=gen())
    x[:, 1], x[:, 2] = x[:, 1] // 4, 51
    d = Dataset("a", x, torch.zeros(1001).long(), x[:0], torch.zeros(0).long(), x[:1], torch.zeros(1).long(), ("a",))
    want = x.double().div(255)
    assert d.mean == pytest.approx(want.mean((0, 2, 3)).tolist(), abs=1e-6) and d.mean[2] == pytest.approx(0.2)
    assert d.std == pytest.approx([*want.std((0, 2, 3), correction=0)[:2].tolist(), 1.0], abs=1e-6)


def test_subset_is_stratified_nested_and_complete():
    d = load(valid=200)
    s = d.subset(n_train=100, n_test=10, n_valid=20, seed=5)
    counts = torch.bincount(s.y_train)
    assert len(s.x_train) == 100 and counts.min() >= 9 and counts.max() <= 11
    assert sorted(s.y_test.tolist()) == list(range(10)) and len(s.x_valid) == 20
    assert torch.equal(s.y_train, d.subset(n_train=100, seed=5).y_train)
    assert not torch.equal(s.x_train, d.subset(n_train=100, seed=6).x_train)
    assert torch.equal(d.subset(n_train=len(d.x_train)).x_train, d.x_train)


def test_subset_keeps_rare_classes():
    y = torch.tensor([0] * 997 + [1, 2, 3])
    x = y.byte().view(-1, 1, 1, 1)
    d = Dataset("rare", x, y, x[:0], y[:0], x, y, tuple("abcd"))
    for n in (4, 5, 50, 999):
        s = d.subset(n_train=n)
        assert len(s.y_train) == n and set(s.y_train.tolist()) == {0, 1, 2, 3}
        assert torch.equal(s.x_train.flatten().long(), s.y_train)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(name="digit"), "did you mean 'digits'"),
        (dict(name="CIFAR-10"), "did you mean 'cifar10'"),
        (dict(name="zebrafish"), "Known: .*mnist"),
        (dict(size=0), "`size`"),
        (dict(size=-8), "`size`"),
        (dict(valid=-0.1), "`valid`"),
        (dict(valid=1.0), "`valid` must leave"),
        (dict(valid=1.5), "`valid`"),
        (dict(valid=1438), "`valid` must leave"),
        (dict(valid=float("nan")), "`valid`"),
        (dict(n_train=5), "`n_train` must be at least 10"),
        (dict(n_train=1439), "`n_train` must be at most 1,"),
        (dict(n_train=0), "`n_train`"),
        (dict(n_test=360), "`n_test` must be at most 359"),
        (dict(n_test=9), "`n_test` must be at least 10"),
        (dict(seed=-1), "`seed`"),
    ],
)
def test_load_refuses_values(arguments, words):
    with pytest.raises(ValueError, match=words):
        load(**arguments)


@pytest.mark.parametrize(
    "arguments", [dict(name=3), dict(size=8.5), dict(valid=True), dict(n_train="9"), dict(seed=0.5)]
)
def test_load_refuses_types(arguments):
    with pytest.raises(TypeError, match=f"`{next(iter(arguments))}`"):
        load(**arguments)


def test_dataset_refuses_what_does_not_fit():
    d = load()
    parts = {k: v for k, v in vars(d).items() if k not in ("mean", "std")}
    for change, error, words in [
        (dict(x_train=as_images(d.x_train)), TypeError, "`x_train` must be a uint8"),
        (dict(x_test=d.x_test[0]), ValueError, "`x_test` must have shape"),
        (dict(x_test=d.x_test[..., :5]), ValueError, "`x_test` must hold images of"),
        (dict(y_train=d.y_train[:-1]), ValueError, "`y_train` must hold 1294 labels"),
        (dict(classes=tuple("abc")), ValueError, "labels from 0 to 2"),
        (dict(y_valid=d.y_valid.int()), TypeError, "`y_valid` must be int64"),
    ]:
        with pytest.raises(error, match=words):
            Dataset(**(parts | change))


# batches


def toy(n=250, c=3, side=6):
    return torch.randint(256, (n, c, side, side), dtype=torch.uint8, generator=gen(1)), torch.arange(n)


def test_a_pass_sees_every_image_once():
    x, y = toy()
    seen = list(Batches(x, y, 100, generator=gen()))
    assert [len(yb) for _, yb in seen] == [100, 100, 50] and len(Batches(x, y, 100)) == 3
    xs, ys = map(torch.cat, zip(*seen))
    assert sorted(ys.tolist()) == y.tolist() and ys.tolist() != y.tolist()
    assert xs.dtype == torch.float32 and torch.equal(xs, x[ys] / 255)
    cut = Batches(x, y, 100, drop_last=True)
    assert len(cut) == len(list(cut)) == 2
    assert len(list(Batches(x[:0], y[:0]))) == 0


def test_order_belongs_to_the_generator():
    x, y = toy()
    order = lambda b: torch.cat([yb for _, yb in b]).tolist()
    a, b = Batches(x, y, generator=gen(7)), Batches(x, y, generator=gen(7))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = order(a), order(a)
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second and [order(b), order(b)] == [first, second]
    assert order(Batches(x, y, shuffle=False)) == y.tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_permutation_equals_explicit_indexing(channels):
    x, y = toy(c=channels)
    p = torch.randperm(36, generator=gen())
    want = (x.float() / 255).flatten(2)[:, :, p].view(x.shape)
    before = x.clone()
    for xb, yb in Batches(x, y, 64, permutation=p, generator=gen()):
        assert torch.equal(xb, want[yb])
    assert torch.equal(x, before)


def test_augmentation_comes_before_the_permutation():
    x, y = toy()
    p = torch.randperm(36, generator=gen())
    (xb, _), *_ = Batches(x, y, shuffle=False, permutation=p, augment=lambda b: b.flip(3))
    assert torch.equal(xb, (x[:100] / 255).flip(3).flatten(2)[..., p].view(xb.shape))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(x=torch.rand(250, 3, 6, 6)), TypeError, "`x` must be a uint8"),
        (dict(x=toy()[0][0]), ValueError, "`x` must have shape"),
        (dict(y=torch.arange(249)), ValueError, "`y` must hold 250"),
        (dict(y=-torch.arange(250)), ValueError, "`y` must hold labels from 0"),
        (dict(batch_size=0), ValueError, "`batch_size`"),
        (dict(batch_size=2.5), TypeError, "`batch_size`"),
        (dict(permutation=torch.arange(35)), ValueError, "`permutation` .* 36"),
        (dict(permutation=torch.arange(36) // 2), ValueError, "`permutation` must name each"),
        (dict(permutation=torch.arange(36) + 1), ValueError, "`permutation` must name each"),
        (dict(permutation=list(range(36))), TypeError, "`permutation`"),
        (dict(generator=3), TypeError, "`generator`"),
        (dict(augment="flip"), TypeError, "`augment`"),
    ],
)
def test_batches_refuse(change, error, words):
    x, y = toy()
    with pytest.raises(error, match=words):
        Batches(**(dict(x=x, y=y) | change))


def test_every_byte_has_its_float():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_images(x), torch.tensor([i / 255 for i in range(256)]))
    with pytest.raises(TypeError, match="uint8"):
        as_images(x.float())


def test_flip_and_crop_shifts_and_mirrors():
    x = torch.rand(400, 2, 5, 6, generator=gen())
    out = flip_and_crop(1, generator=gen(3))(x)
    wide = torch.nn.functional.pad(x, (1, 1, 1, 1))
    kinds = {}
    for dy in range(3):
        for dx in range(3):
            cut = wide[:, :, dy : dy + 5, dx : dx + 6]
            for mirrored, want in ((False, cut), (True, wide.flip(3)[:, :, dy : dy + 5, dx : dx + 6])):
                kinds[dy, dx, mirrored] = (out == want).flatten(1).all(1)
    hits = torch.stack([*kinds.values()])
    assert (hits.sum(0) == 1).all() and (hits.sum(1) > 5).all()
    assert torch.equal(out, flip_and_crop(1, generator=gen(3))(x))
    assert torch.equal(flip_and_crop(0, flip=False)(x), x)
    with pytest.raises(ValueError, match="`padding`"):
        flip_and_crop(-1)


# patches


def test_patches_share_what_they_say():
    d = patch_dataset(shared=8, own=12)
    on = as_images(d.x_train).flatten(1)
    first = [on[d.y_train == k][0] for k in range(4)]
    assert set(d.x_train.unique().tolist()) == {0, 255} and d.shape == (1, 10, 10)
    assert all(a.sum() == 20 for a in first)
    assert all((first[i] * first[j]).sum() == 8 for i in range(4) for j in range(i))
    assert all((on[d.y_train == k] == first[k]).all() for k in range(4))
    assert torch.equal(d.x_train, patch_dataset(shared=8, own=12).x_train)
    assert not torch.equal(d.x_train, patch_dataset(shared=8, own=12, seed=1).x_train)
    assert torch.equal(load("patches", valid=0).x_train, patch_dataset().x_train)


def test_patches_noise_flips_that_share_of_pixels():
    clean, noisy = patch_dataset(n_train=4000), patch_dataset(n_train=4000, noise=0.1)
    assert (clean.x_train != noisy.x_train).float().mean() == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("change", [dict(shared=97), dict(own=0), dict(noise=0.6), dict(n_train=3), dict(n_test=-1)])
def test_patches_refuse(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
        patch_dataset(**change)


# real files


def test_mnist_is_what_torchvision_reads():
    root = real("MNIST/raw")
    d = load("mnist", root, valid=0)
    for train, x, y in ((True, d.x_train, d.y_train), (False, d.x_test, d.y_test)):
        theirs = torchvision.datasets.MNIST(root, train=train, download=False)
        assert torch.equal(x[:, 0], theirs.data) and torch.equal(y, theirs.targets)
    raw = np.frombuffer((root / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    assert np.array_equal(d.x_test.flatten().numpy(), raw)
    assert d.mean == pytest.approx([0.1307], abs=1e-4) and d.std == pytest.approx([0.3081], abs=1e-4)


def test_fashion_mnist_npz():
    root = real("fashion_mnist.npz")
    d = load("fashion_mnist", root, valid=0)
    with np.load(root / "fashion_mnist.npz") as f:
        assert np.array_equal(d.x_train[:, 0].numpy(), f["x_train"]) and np.array_equal(d.y_test.numpy(), f["y_test"])
    assert d.classes[9] == "Ankle boot" and torch.bincount(d.y_test).tolist() == [1000] * 10


def test_cifar10_zip_of_class_folders():
    root = real("cifar10.zip")
    d = load("cifar10", root, valid=0)
    assert d.x_train.shape == (50000, 3, 32, 32) and torch.bincount(d.y_train).tolist() == [5000] * 10
    assert d.classes[:2] == ("airplane", "automobile") and torch.bincount(d.y_test).tolist() == [1000] * 10
    with zipfile.ZipFile(root / "cifar10.zip") as z:
        for part, label, i in (("train", 3, 4321), ("test", 9, 0), ("train", 0, 0)):
            member = f"cifar10/{part}/{d.classes[label]}/{i:04}.webp"
            want = np.asarray(Image.open(io.BytesIO(z.read(member))).convert("RGB"))
            x, y = getattr(d, f"x_{part}"), getattr(d, f"y_{part}")
            assert np.array_equal(x[y == label][i].permute(1, 2, 0).numpy(), want)
    assert d.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-4)


def test_tiny_imagenet_zip():
    root = real("tiny-imagenet-20.zip")
    d = load("tiny_imagenet", root)
    assert d.x_test.shape == (1000, 3, 64, 64) and torch.bincount(d.y_test).tolist() == [50] * 20
    assert len(d.x_train) == 9000 and len(d.x_valid) == 1000 and len(set(d.classes)) == 20
    with zipfile.ZipFile(root / "tiny-imagenet-20.zip") as z:
        table = [r.split("\t") for r in z.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()]
        wnids = sorted(z.read("tiny-imagenet-200/wnids.txt").decode().split())
        for i in (0, 500, 999):
            with Image.open(io.BytesIO(z.read(f"tiny-imagenet-200/val/images/{table[i][0]}"))) as im:
                want = np.asarray(im.convert("RGB"))
            assert np.array_equal(d.x_test[i].permute(1, 2, 0).numpy(), want)
            assert d.y_test[i] == wnids.index(table[i][1])


def test_nothing_is_written_into_the_data_folder(monkeypatch):
    root = real("MNIST/raw")
    monkeypatch.setenv("ROBUSTLIT_DATA", str(root))
    before = snapshot(root)
    for name in available():
        load(name)
    with pytest.raises(FileNotFoundError):
        load("cifar100", download=False)
    monkeypatch.setenv("ROBUSTLIT_CACHE", str(root / "cache"))
    with pytest.raises(ValueError, match="outside ROBUSTLIT_DATA"):
        load("mnist")
    assert snapshot(root) == before


# class folders


def test_class_folder_with_formats_and_sizes(pets):
    d = load(pets, size=8, valid=0)
    assert d.shape == (3, 8, 8) and d.classes == ("cat", "dog") and d.name == "pets"
    assert d.y_train.tolist() == [0] * 5 + [1] * 5 and d.y_test.tolist() == [0, 0, 1, 1]
    grey = d.x_train[1]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    with pytest.raises(ValueError, match="images must be of one size.*`size`"):
        load(pets)


def test_folder_zip_and_wrapped_zip_are_one_dataset(pets, tmp_path):
    d = load(pets, size=8)
    for top in ("", "pets/", "a/b/"):
        z = load(zipped(pets, tmp_path / "z.zip", top), size=8)
        assert torch.equal(z.x_train, d.x_train) and torch.equal(z.y_test, d.y_test) and z.classes == d.classes


def test_pixels_are_those_pillow_decodes(tmp_path):
    for c in "ab":
        (tmp_path / "set" / c).mkdir(parents=True)
        for i in range(5):
            picture(10 * ord(c) + i).save(tmp_path / "set" / c / f"{i}.png")
    d = load("set", tmp_path, valid=0)
    x, y = torch.cat([d.x_train, d.x_test]), torch.cat([d.y_train, d.y_test])
    pixels = lambda c, i: np.asarray(picture(10 * ord(c) + i)).transpose(2, 0, 1).tobytes()
    want = {pixels(c, i): k for k, c in enumerate("ab") for i in range(5)}
    assert {a.numpy().tobytes(): int(b) for a, b in zip(x, y)} == want
    assert len(d.x_test) == 2 and sorted(d.y_test.tolist()) == [0, 1]


def test_grey_of_every_kind_stays_grey(tmp_path):
    folder = tmp_path / "grey" / "one"
    folder.mkdir(parents=True)
    a = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(a).save(folder / "0.png")
    Image.fromarray(a).save(folder / "1.gif")
    Image.fromarray(a.astype(np.uint16) * 257).save(folder / "2.png")
    Image.fromarray(a).convert("LA").save(folder / "3.png")
    Image.fromarray(a).save(folder / "4.tiff")
    d = load(folder.parent, valid=0)
    assert d.shape == (1, 16, 16)
    assert all(np.array_equal(x[0].numpy(), a) for x in torch.cat([d.x_train, d.x_test]))


def test_transparency_and_orientation(tmp_path):
    folder = tmp_path / "odd" / "one"
    folder.mkdir(parents=True)
    im = picture(0, size=(8, 8))
    alpha = im.copy()
    alpha.putalpha(128)
    alpha.save(folder / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    im.save(folder / "1.png", exif=exif)
    d = load(folder.parent, valid=0)
    plain = torch.tensor(np.asarray(im)).permute(2, 0, 1)
    assert (d.x_train[0] - (plain.float() * 128 / 255 + 127)).abs().max() <= 1  # half of it, on white
    assert torch.equal(d.x_train[1], plain.rot90(-1, (1, 2)))


def test_validation_folders(pets, tmp_path):
    (pets / "test").rename(pets / "val")
    d = load(pets, size=8, valid=0)
    assert len(d.x_test) == 4 and len(d.x_valid) == 0
    both = tmp_path / "both.zip"
    with zipfile.ZipFile(both, "w") as z:
        for part, n in (("Train", 4), ("valid", 2), ("TEST", 3)):
            for i in range(n):
                data = io.BytesIO()
                picture(i).save(data, "png")
                z.writestr(f"{part}/10/{i}.png", data.getvalue())
                z.writestr(f"{part}/9/{i}.png", data.getvalue())
    d = load(both)
    assert [len(d.x_train), len(d.x_valid), len(d.x_test)] == [8, 4, 6] and d.classes == ("9", "10")
    assert len(load(both, valid=0).x_valid) == 0


@pytest.mark.parametrize(
    "where, words",
    [
        ("cover.png", "folder of its class.*cover.png"),
        ("train/cover.png", "folder of its class.*cover.png"),
        ("extra/cat/0.png", "nothing beside.*extra"),
        ("test/fish/0.png", "class 'fish', none of the training classes"),
    ],
)
def test_misplaced_images_are_refused(pets, where, words):
    (pets / where).parent.mkdir(parents=True, exist_ok=True)
    picture(0).save(pets / where)
    with pytest.raises(ValueError, match=words):
        load(pets, size=8)


def test_a_corrupt_image_is_named(pets, tmp_path):
    bad = pets / "train" / "dog" / "2.webp"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(ValueError, match="cannot read the image .*pets/train/dog/2.webp"):
        load(pets, size=8)
    with pytest.raises(ValueError, match="x.zip, member train/dog/2.webp"):
        load(zipped(pets, tmp_path / "x.zip"), size=8)
    bad.write_text("no image at all")
    with pytest.raises(ValueError, match="dog/2.webp"):
        load(pets, size=8)


def test_a_truncated_jpeg_is_not_padded_with_grey(pets):
    bad = pets / "train" / "cat" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(ValueError, match="cat/1.jpg"):
        load(pets, size=8)


def test_what_is_no_dataset(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="text.zip must be a folder, a zip or an .npz"):
        load(tmp_path / "text.zip")
    with pytest.raises(FileNotFoundError, match="no dataset at .*none.zip"):
        load(tmp_path / "none.zip")
    with pytest.raises(FileNotFoundError, match="`root` must be a folder"):
        load("mnist", tmp_path / "nowhere")


def test_sizes_of_arrays_and_pictures_agree(tmp_path):
    a = np.random.default_rng(0).integers(0, 9, (20, 12, 20), dtype=np.uint8) + np.arange(0, 240, 12, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=a, y_train=np.arange(20) % 2)
    for i in range(20):
        (tmp_path / "p" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(a[i]).save(tmp_path / "p" / str(i % 2) / f"{i:02}.png")
    arrays, pictures = (load(tmp_path / n, size=6, valid=0) for n in ("a.npz", "p"))
    by_class = lambda d: torch.cat([d.x_train, d.x_test])[torch.cat([d.y_train, d.y_test]) == 1].int()
    assert arrays.shape == pictures.shape == (1, 6, 6)
    mean = lambda d: by_class(d).float().mean((0, 1))
    assert (mean(arrays) - mean(pictures)).abs().max() < 1


# other layouts


def npz(path, **change):
    rng = np.random.default_rng(0)
    arrays = dict(
        x_train=rng.integers(0, 256, (30, 5, 4, 3), dtype=np.uint8),
        y_train=np.arange(30).reshape(-1, 1) % 3,
        x_test=rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        y_test=np.arange(6, dtype=np.uint8) % 3,
    )
    arrays = {k: v for k, v in (arrays | change).items() if v is not None}
    np.savez(path, **arrays)
    return arrays


def test_npz_with_channels_last(tmp_path):
    arrays = npz(tmp_path / "mine.npz")
    d = load("mine", tmp_path, valid=0)
    assert np.array_equal(d.x_train.permute(0, 2, 3, 1).numpy(), arrays["x_train"]) and d.classes == ("0", "1", "2")
    assert d.y_train.tolist() == arrays["y_train"].ravel().tolist()
    npz(tmp_path / "mine.npz", x_test=None, y_test=None)
    d = load("mine", tmp_path, valid=0)
    assert len(d.x_train) == 24 and torch.bincount(d.y_test).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(y_train=np.arange(30)[:, None] % 3 + 5), "labels from 0 to 2, got 5 to 7"),
        (dict(y_test=np.array([0, 1, 2, 3, 0, 1])), "y_test of mine.*labels from 0 to 2, got 0 to 3"),
        (dict(y_train=np.arange(30) % 3 - 1), "labels from 0"),
        (dict(y_train=np.arange(29) % 3), "30 labels"),
        (dict(y_train=np.arange(30) / 3), "whole numbers"),
        (dict(x_train=np.zeros((30, 5, 4, 3))), "must be uint8, got float64"),
        (dict(x_test=np.zeros((6, 5), np.uint8)), "x_test must be"),
        (dict(x_train=None), "must hold x_train"),
        (dict(y_test=None), "both or neither"),
    ],
)
def test_npz_refused(tmp_path, change, words):
    npz(tmp_path / "mine.npz", **change)
    with pytest.raises(ValueError, match=words):
        load("mine", tmp_path)


def test_a_label_no_known_class_has_is_refused(tmp_path):
    npz(tmp_path / "fashion_mnist.npz", y_train=np.arange(30) % 11)
    with pytest.raises(ValueError, match="labels from 0 to 9, got 0 to 10"):
        load("fashion_mnist", tmp_path)


def test_a_damaged_npz_or_idx_is_named(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="cannot read .*mnist.npz"):
        load("mnist", tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in rs._IDX:
        (raw / name).write_bytes(b"\0\0\x08\x03 short")
    with pytest.raises(ValueError, match="cannot read the files in .*raw"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name, folder", [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_torchvisions_cifar(tmp_path, monkeypatch, name, folder):
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    (tmp_path / folder).mkdir()
    rng, n = np.random.default_rng(0), int(name[5:])
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if n == 10 else ["train", "test"]
    x = rng.integers(0, 256, (len(files), 2 * n, 3, 32, 32), dtype=np.uint8)
    key, names = ("labels", "label_names") if n == 10 else ("fine_labels", "fine_label_names")
    for f, a in zip(files, x):
        batch = {"data": a.reshape(2 * n, -1), key: [i % n for i in range(2 * n)]}
        (tmp_path / folder / f).write_bytes(pickle.dumps(batch))
    meta = pickle.dumps({names: [f"class {i}" for i in range(n)]})
    (tmp_path / folder / ("batches.meta" if n == 10 else "meta")).write_bytes(meta)
    d = load(name, tmp_path, valid=0)
    assert np.array_equal(d.x_train.numpy(), np.concatenate(x[:-1])) and np.array_equal(d.x_test.numpy(), x[-1])
    assert d.y_train[:n].tolist() == list(range(n)) and d.classes[3] == "class 3"


def test_torchvisions_cifar_with_a_wrong_checksum(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"surprise")
    with pytest.raises(ValueError, match="cannot read the files in .*cifar-10-batches-py"):
        load("cifar10", tmp_path)


def test_tiny_imagenets_layout_as_a_folder(tmp_path):
    base = tmp_path / "tiny-imagenet-200"
    wnids, words = ["n03", "n01", "n02"], "n01\tcrane, bird\nn02\tcrane\nn03\tox, bull\nn09\tmoon\n"
    (base / "val" / "images").mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(wnids))
    (base / "words.txt").write_text(words)
    table = []
    for k, w in enumerate(wnids):
        (base / "train" / w / "images").mkdir(parents=True)
        (base / "train" / w / f"{w}_boxes.txt").write_text("0 0 1 1")
        for i in range(4):
            picture(10 * k + i, "L" if i == 0 else "RGB").save(base / "train" / w / "images" / f"{w}_{i}.JPEG")
        picture(100 + k).save(base / "val" / "images" / f"val_{k}.JPEG")
        table.append(f"val_{k}.JPEG\t{w}\t0\t0\t1\t1\n")
    (base / "val" / "val_annotations.txt").write_text("".join(table))
    d = load("tiny_imagenet", tmp_path, valid=0)
    assert d.classes == ("crane (n01)", "crane (n02)", "ox") and d.y_test.tolist() == [2, 0, 1]
    assert torch.bincount(d.y_train).tolist() == [4, 4, 4]
    with Image.open(base / "val" / "images" / "val_1.JPEG") as im:
        assert np.array_equal(d.x_test[1].permute(1, 2, 0).numpy(), np.asarray(im))
    (base / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="listed but missing: .*val_2.JPEG"):
        load("tiny_imagenet", tmp_path)


# folders as people have them


def tree(root, *names, seed=0):
    "Pictures of one size at these places, no two alike; a name that ends in / is an empty folder."
    for i, n in enumerate(names):
        (root / n).parent.mkdir(parents=True, exist_ok=True)
        (root / n).mkdir(parents=True) if n.endswith("/") else picture(seed + i).save(root / n)
    return root


def of(*tops, classes=("cat", "dog"), n=2):
    return [f"{t}/{c}/{i}.png" for t in tops for c in classes for i in range(n)]


@pytest.mark.parametrize(
    "tops",
    [
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("TrainImages", "TestImages"),
        ("trainset", "testset"),
        ("my-train-data", "my-val-data"),
        ("train1", "test1"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("data/train/images", "data/test/images"),
    ],
)
def test_parts_are_known_by_longer_names(tmp_path, tops):
    d = load(tree(tmp_path / "set", *of(tops[0], n=3), *of(tops[1])), valid=0)
    assert d.classes == ("cat", "dog") and (len(d.x_train), len(d.x_test)) == (6, 4)
    assert d.y_train.tolist() == [0, 0, 0, 1, 1, 1] and d.y_test.tolist() == [0, 0, 1, 1]


def test_parts_below_each_class(tmp_path):
    folder = tree(tmp_path / "set", *of("cat", "dog", classes=("train",), n=3), *of("cat", "dog", classes=("test",)))
    d = load(folder, valid=0)
    assert d.classes == ("cat", "dog") and d.y_train.tolist() == [0, 0, 0, 1, 1, 1] and len(d.x_test) == 4


@pytest.mark.parametrize(
    "names, words",
    [
        (of("left", "right"), r"two ways: with the classes \['left', 'right'\], or with the classes \['cat', 'dog'\]"),
        (of("train", "holdout"), "two ways"),
        (of("train", "train_flipped"), "two ways"),
        ([*of("train"), "predict/1.png", "predict/2.png"], "two ways"),
        ([*of("seg_train", "seg_test"), "seg_pred/seg_pred/1.png"], r"nothing beside, got .*'seg_pred'"),
        (["my_train/1.png", "my_test/1.png"], "in the folder of its class"),
        ([*of("test"), "train/cat/", "train/dog/"], "folder train in .* must hold images to train with"),
    ],
)
def test_folders_that_may_mean_two_things_are_refused(tmp_path, names, words):
    with pytest.raises(ValueError, match=words):
        load(tree(tmp_path / "set", *names))


@pytest.mark.parametrize("classes", [("bullet_train", "car"), ("train", "bus"), ("test_tube", "train_station", "dam")])
def test_classes_named_like_parts_stay_classes(tmp_path, classes):
    d = load(tree(tmp_path / "set", *(f"{c}/{i}.png" for c in classes for i in range(5))), valid=0)
    assert d.classes == tuple(sorted(classes))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("top", ["", "train/"])
def test_an_empty_class_keeps_its_number(tmp_path, top, pack):
    names = [f"{top}{c}/{i}.png" for c in ("ant", "cat") for i in range(5)]
    folder = tree(tmp_path / "set", *names, *(["test/cat/0.png"] if top else []), f"{top}bee/")
    path = zipped(folder, tmp_path / "set.zip") if pack else folder
    with pytest.warns(UserWarning, match="the class 'bee' has no training images"):
        d = load(path, valid=0)
    assert d.classes == ("ant", "bee", "cat") and set(d.y_train.tolist()) == {0, 2}
    (folder / top / "bee").rmdir()
    assert load(folder, valid=0).classes == ("ant", "cat")


def test_a_class_of_pictures_that_are_not_read_keeps_its_number(tmp_path):
    folder = tree(tmp_path / "set", *of("ant", "cat", classes=("x",)))
    (folder / "bee").mkdir()
    (folder / "bee" / "0.heic").write_bytes(b"a telephone's picture")
    (folder / "about").mkdir()
    (folder / "about" / "licence.txt").write_text("free")
    with pytest.warns(UserWarning, match="2 files not read, such as about/licence.txt; the class 'bee' has no"):
        assert load(folder).classes == ("ant", "bee", "cat")


def test_a_part_without_images_is_said(tmp_path):
    folder = tree(tmp_path / "set", *of("train", n=6), "test/cat/", "test/dog/", "val/")
    with pytest.warns(UserWarning, match="the folder test holds no images; the folder val holds no images"):
        assert len(load(folder).x_test) == 2


def told(path):
    "The warnings of two loadings, the second from the cache."
    said = []
    for _ in range(2):
        with pytest.warns(UserWarning) as caught:
            load(path, valid=0)
        said.append([str(w.message) for w in caught])
    return said


def test_what_is_left_out_is_said_in_one_warning_also_from_the_cache(tmp_path):
    folder = tree(tmp_path / "set", *of("train", "test"), "train/owl/")
    (folder / "test" / "more.zip").write_bytes(b"")
    (folder / "train" / "read.me").write_text("thanks")
    first, second = told(zipped(folder, tmp_path / "set.zip"))
    assert first == second and len(first) == 1
    assert first[0].endswith("2 files not read, such as test/more.zip; the class 'owl' has no training images")


def test_a_set_with_nothing_odd_is_silent(tmp_path, recwarn):
    load(tree(tmp_path / "set", *of("train", "test")))
    assert not recwarn.list


# pixels


def scene(*images, root):
    "A class folder with these pictures, and the pictures that are read from it, in their order."
    (root / "one").mkdir(parents=True)
    for i, im in enumerate(images):
        im.save(root / "one" / f"{i}.png") if isinstance(im, Image.Image) else (root / "one" / f"{i}.tiff").write_bytes(
            im
        )
    arrays = rs.read_arrays(root)
    return arrays["x_train"]


def ink(mode, colour):
    "A picture of this colour everywhere, visible in its left half only."
    im = Image.new(mode, (6, 6), colour)
    alpha = Image.new("L", (6, 6), 0)
    alpha.paste(255, (0, 0, 3, 6))
    im.putalpha(alpha)
    return im


def test_a_drawing_in_the_alpha_channel_is_seen(tmp_path):
    grey, red = ink("L", 0), ink("RGB", (200, 0, 0))
    keyed = Image.new("P", (6, 6), 1)
    keyed.putpalette([0, 0, 0, 50, 50, 50])
    keyed.paste(0, (3, 0, 6, 6))
    keyed.info["transparency"] = 0
    x = scene(grey, red, keyed, root=tmp_path / "ink")
    assert x.shape == (3, 3, 6, 6) and (x[..., 3:] == 255).all()
    assert [x[i, :, 0, 0].tolist() for i in range(3)] == [[0, 0, 0], [200, 0, 0], [50, 50, 50]]
    assert scene(grey, ink("L", 9), root=tmp_path / "grey").shape == (2, 1, 6, 6)


def test_opaque_pictures_do_not_change(tmp_path):
    plain = [picture(i, size=(8, 8)) for i in range(2)]
    a, b = (scene(*(im.convert(m) for im in plain), root=tmp_path / m) for m in ("RGB", "RGBA"))
    assert np.array_equal(a, b)


def deep(top, shape=(8, 8)):
    return np.random.default_rng(0).integers(0, top + 1, shape, dtype=np.uint16)


@pytest.mark.parametrize("top", [1023, 4095, 16383])
def test_few_bits_in_a_file_of_sixteen_are_refused(tmp_path, top):
    images = [Image.fromarray(deep(top)), Image.fromarray(deep(top)[::-1].copy()), picture(0, "L", (8, 8))]
    with pytest.raises(
        ValueError, match="use no more than .* of their range, and no file says how many bits are meant"
    ):
        scene(*images, root=tmp_path / "cells")


def test_few_bits_in_colour_are_refused_too(tmp_path):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep(4095, (8, 8, 3)))
    part = lambda kind, body: len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    head = (8).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    (tmp_path / "rgb" / "one").mkdir(parents=True)
    (tmp_path / "rgb" / "one" / "0.png").write_bytes(png)
    with pytest.raises(ValueError, match="16 bits .* no file says"):
        rs.read_arrays(tmp_path / "rgb")


def test_sixteen_bits_that_are_used_are_scaled_together(tmp_path):
    a = deep(65535)
    x = scene(Image.fromarray(a), Image.fromarray(a // 8), root=tmp_path / "cells")
    assert np.array_equal(x[0, 0], np.round(a / 257.0).astype(np.uint8)) and 28 <= x[1].max() <= 32


def tiff(values, bits):
    "A grey TIFF of so many bits a pixel, two pixels in three bytes."
    rows = "".join(f"{v:0{bits}b}" for v in values.ravel())
    body = int(rows, 2).to_bytes(len(rows) // 8, "big")
    h, w = values.shape
    tags = [(256, w), (257, h), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, h), (279, len(body))]
    entry = lambda tag, v: tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + v.to_bytes(4, "little")
    table = len(tags).to_bytes(2, "little") + b"".join(entry(*t) for t in tags) + bytes(4)
    return b"II*\0" + (8 + len(body)).to_bytes(4, "little") + body + table


def test_twelve_bits_are_scaled_where_the_file_says_so(tmp_path):
    a = deep(4095)
    x = scene(tiff(a, 12), root=tmp_path / "cells")
    assert np.abs(x[0, 0].astype(int) - a.astype(int) * 255 / 4095).max() <= 0.5


def test_zeros_and_ones_are_refused_and_booleans_are_black_and_white(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (30, 5, 4, 3), dtype=np.uint8)
    npz(tmp_path / "bits.npz", x_train=bits, x_test=bits[:6])
    with pytest.raises(ValueError, match="bits.npz are only 0 and 1, where white is 255"):
        load("bits", tmp_path)
    with pytest.raises(ValueError, match="only 0 and 1"):
        scene(*(Image.fromarray(b[..., 0]) for b in bits[:3]), root=tmp_path / "masks")
    npz(tmp_path / "bits.npz", x_train=bits.astype(bool), x_test=bits[:6].astype(bool))
    assert np.array_equal(load("bits", tmp_path, valid=0).x_train.permute(0, 2, 3, 1).numpy(), bits * 255)


def test_dark_and_equal_images_are_said(tmp_path):
    a = np.random.default_rng(0).integers(0, 17, (30, 5, 4, 3), dtype=np.uint8)
    npz(tmp_path / "dark.npz", x_train=a, x_test=a[:6])
    assert told(tmp_path / "dark.npz")[1] == [f"{tmp_path / 'dark.npz'}: the brightest pixel is 16, where white is 255"]
    npz(tmp_path / "dark.npz", x_train=np.full_like(a, 200))
    assert "all training images are equal" in told(tmp_path / "dark.npz")[0][0]


# what an npz brings


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_the_validation_images_of_an_npz_are_used(tmp_path, name):
    x = np.random.default_rng(1).integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    npz(tmp_path / "mine.npz", **{f"x_{name}": x, f"y_{name}": np.arange(9) % 3})
    d = load("mine", tmp_path)
    assert len(d.x_train) == 30 and np.array_equal(d.x_valid.permute(0, 2, 3, 1).numpy(), x)


def test_other_arrays_of_an_npz_are_said(tmp_path):
    npz(tmp_path / "mine.npz", x_extra=np.zeros(3), names=np.array(["a"]))
    assert told(tmp_path / "mine.npz")[1] == [f"{tmp_path / 'mine.npz'}: the arrays x_extra, names are not read"]


@pytest.mark.parametrize(
    "change, words",
    [
        (
            dict(x_test=np.zeros((0, 5, 4, 3), np.uint8), y_test=np.zeros(0, int)),
            "x_test .* must hold images, got none",
        ),
        (dict(x_train=np.zeros((0, 5, 4, 3), np.uint8), y_train=np.zeros(0, int)), "x_train .* must hold images"),
        (dict(x_val=np.zeros((3, 5, 4, 3), np.uint8)), "both or neither of .* x_valid, y_valid"),
        (dict(x_val=np.zeros((3, 5, 4, 3), np.uint8), y_val=np.full(3, 7)), "y_valid of mine.* labels from 0 to 2"),
    ],
)
def test_an_npz_with_half_a_part_is_refused(tmp_path, change, words):
    npz(tmp_path / "mine.npz", **change)
    with pytest.raises(ValueError, match=words):
        load("mine", tmp_path)


# files that are not there


def test_missing_files_are_explained(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as e:
        load("cifar10", tmp_path, download=False)
    for word in (
        "cifar10.zip",
        "cifar-10-batches-py",
        str(tmp_path),
        "ROBUSTLIT_DATA is not set",
        "https://",
        "download",
    ):
        assert word in str(e.value)
    with pytest.raises(FileNotFoundError, match="by hand"):
        load("tiny_imagenet", tmp_path)


def test_folders_are_searched_in_order(tmp_path, monkeypatch):
    roots = {k: tmp_path / k for k in ("argument", "environment")}
    monkeypatch.setenv("ROBUSTLIT_DATA", str(roots["environment"]))
    user = rs.data_dirs()["the user's data folder"]
    for i, folder in enumerate([*roots.values(), user], 1):
        folder.mkdir(parents=True, exist_ok=True)
        npz(folder / "mine.npz", x_train=np.full((30, 5, 4, 3), i, np.uint8))
    first = lambda *root: int(load("mine", *root).x_train.max())
    assert (first(roots["argument"]), first()) == (1, 2)
    monkeypatch.delenv("ROBUSTLIT_DATA")
    assert first() == 3
    (user / "mine.npz").unlink()


def fake_mnist(root, download):
    raw = Path(root) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 40), ("t10k", 10)):
        head = lambda *v: b"\0\0\x08" + bytes([len(v)]) + b"".join(i.to_bytes(4, "big") for i in v)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head(n, 3, 3) + bytes(n * 9))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head(n) + bytes(i % 10 for i in range(n)))


def test_download_goes_into_the_users_folder_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(rs.platformdirs, "user_data_path", lambda *_, **__: tmp_path / "home")
    monkeypatch.setenv("ROBUSTLIT_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    user = rs.data_dirs()["the user's data folder"]

    def broken(root, download):
        (Path(root) / "MNIST" / "raw").mkdir(parents=True)
        raise OSError("the network went away")

    monkeypatch.setattr(torchvision.datasets, "MNIST", broken)
    with pytest.raises(FileNotFoundError, match="the network went away"):
        load("mnist")
    assert not [p for p in user.iterdir() if p.suffix != ".lock"]
    monkeypatch.setattr(torchvision.datasets, "MNIST", fake_mnist)
    with pytest.raises(FileNotFoundError):
        load("mnist", download=False)
    d = load("mnist", tmp_path / "data", valid=0)
    assert len(d.x_train) == 40 and d.classes == tuple("0123456789")
    assert (user / "MNIST" / "raw").is_dir() and not list((tmp_path / "data").iterdir())
    assert available()["mnist"] == user / "MNIST" / "raw"


# the cache


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    "A cache of its own, and a count of the times that something was decoded."
    monkeypatch.setenv("ROBUSTLIT_CACHE", str(tmp_path / "fresh"))
    calls, decode = [], rs._decode
    monkeypatch.setattr(rs, "_decode", lambda *a: calls.append(1) or decode(*a))
    return tmp_path / "fresh", calls


def test_decoded_once_wherever_it_lies(pets, tmp_path, fresh):
    a = load(pets, size=8)
    pets.rename(tmp_path / "elsewhere")
    b = load(tmp_path / "elsewhere", size=8)
    assert len(fresh[1]) == 1 and torch.equal(a.x_train, b.x_train)
    load(tmp_path / "elsewhere", size=9)
    assert len(fresh[1]) == 2


def test_a_changed_picture_is_seen_whatever_its_date_and_size(pets, fresh):
    a = load(pets, size=8, valid=0)
    path = pets / "train" / "cat" / "3.bmp"
    old, stat = path.read_bytes(), path.stat()
    half = len(old) // 2
    path.write_bytes(old[:half] + bytes(60) + old[half + 60 :])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    b = load(pets, size=8, valid=0)
    assert len(fresh[1]) == 2 and not torch.equal(a.x_train[3], b.x_train[3])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_cache_is_noticed_and_rebuilt(pets, fresh, damage):
    a = load(pets, size=8)
    (path,) = fresh[0].glob("*.npz")
    good = path.read_bytes()
    middle = good.index(b"x_train.npy") + 300
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    other = io.BytesIO()
    np.savez(other, x_test=np.zeros(3))
    path.write_bytes({"flip": flipped, "cut": good[:-500], "empty": b"", "other": other.getvalue()}[damage])
    with pytest.warns(UserWarning, match="decoding it again"):
        b = load(pets, size=8)
    assert torch.equal(a.x_train, b.x_train) and torch.equal(a.y_test, b.y_test) and path.read_bytes() == good
    load(pets, size=8)
    assert len(fresh[1]) == 2


def test_a_killed_writer_leaves_no_dataset_and_no_rubbish(pets, fresh, monkeypatch):
    def killed(f, key, arrays):
        f.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(rs, "_save_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            load(pets, size=8)
    assert not [p for p in fresh[0].iterdir() if p.suffix != ".lock"]
    (lock,) = fresh[0].glob("*.lock")
    left = fresh[0] / f".{lock.stem}.abc.tmp"
    left.write_bytes(b"from a process that was killed")
    load(pets, size=8)
    assert not left.exists() and len(list(fresh[0].glob("*.npz"))) == 1


def test_without_a_cache_it_still_loads(pets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROBUSTLIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="no cache for decoded datasets"):
        assert len(load(pets, size=8, valid=0).x_train) == 10


def test_the_source_is_not_touched(pets, fresh):
    before = snapshot(pets)
    load(pets, size=8)
    assert snapshot(pets) == before


BUILD = """
import sys, time, hashlib, pathlib
import robustlit.data as rd
import robustlit.sources as rs
decode = rs._decode
def slow(*a):
    print("decoded"); time.sleep(1); return decode(*a)
rs._decode = slow
go, me = pathlib.Path(sys.argv[2]), sys.argv[3]
(go / me).touch()
while len(list(go.iterdir())) < 2: time.sleep(0.01)
d = rd.load(sys.argv[1], size=8)
print(hashlib.sha256(d.x_train.numpy().tobytes()).hexdigest())
"""


def test_two_processes_build_one_cache(pets, tmp_path, fresh):
    (tmp_path / "go").mkdir()
    start = lambda me: subprocess.Popen(
        [sys.executable, "-c", BUILD, str(pets), str(tmp_path / "go"), me], stdout=subprocess.PIPE, text=True
    )
    outs = [p.communicate(timeout=120)[0].split() for p in [start("a"), start("b")]]
    assert outs[0][-1] == outs[1][-1] and sum(o.count("decoded") for o in outs) == 1
    assert len(list(fresh[0].glob("*.npz"))) == 1 and not list(fresh[0].glob(".*.tmp"))
