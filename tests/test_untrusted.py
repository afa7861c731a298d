"""Files and names as strangers make them: odd entries, bombs, cut downloads, replaced caches, text on a page, modes of files."""

import gzip
import io
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

import robustlit.data as rd
import robustlit.sources as rs
from robustlit.command import main
from robustlit.data import load
from robustlit.files import write_atomically
from robustlit.report import _drawn_data, report_page
from robustlit.stressors import images_and_labels


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache and a user's data folder of its own."
    monkeypatch.setenv("ROBUSTLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rs.platformdirs, "user_data_path", lambda *_, **__: tmp_path / "home")
    monkeypatch.delenv("ROBUSTLIT_DATA", raising=False)
    return tmp_path / "cache"


def noise(seed, w=12, h=10):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


@pytest.fixture
def pets(tmp_path):
    "Two classes of twelve pictures."
    for k, kind in enumerate(("cat", "dog")):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(12):
            noise(100 * k + i).save(tmp_path / "pets" / kind / f"{i}.png")
    return tmp_path / "pets"


def loaded(path, limit=60):
    "The training images that a process of its own finds, killed after `limit` seconds."
    code = "import sys\nfrom robustlit.data import load\nprint(len(load(sys.argv[1], size=8, valid=0).x_train))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=limit)
    return done.stdout.strip() or done.stderr


def same(a, b):
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(a, f"x_{part}"), getattr(b, f"x_{part}"))
        assert torch.equal(getattr(a, f"y_{part}"), getattr(b, f"y_{part}"))
    assert (a.mean, a.std, a.classes) == (b.mean, b.std, b.classes)


# entries that are no regular files


def test_a_named_pipe_does_not_hang(pets):
    os.mkfifo(pets / "cat" / "pipe.png")
    assert loaded(pets) == "20"
    with pytest.warns(UserWarning, match="1 not regular file, such as cat/pipe.png"):
        load(pets, size=8)


def test_a_pipe_or_a_device_in_the_place_of_a_dataset_is_refused(tmp_path):
    for name in ("mnist.zip", "mine.npz"):
        os.mkfifo(tmp_path / name)
    for name in ("mnist", "mine", tmp_path / "mine.npz", "/dev/zero"):
        with pytest.raises(ValueError, match="regular file"):
            load(name, tmp_path)


def test_sockets_and_links_to_nowhere_are_left_out_and_said(pets, monkeypatch):
    before = load(pets, size=8)
    monkeypatch.chdir(pets / "cat")
    socket.socket(socket.AF_UNIX).bind("socket.png")
    (pets / "dog" / "gone.png").symlink_to("nowhere.png")
    (pets / "dog" / "self.png").symlink_to("self.png")
    with pytest.warns(UserWarning, match="3 not regular files"):
        same(load(pets, size=8), before)


@pytest.mark.parametrize(
    "where, to", [("cat/up", ".."), ("cat/same", "."), ("dog/up", "../../pets"), ("cat/root", "/")]
)
def test_a_loop_of_links_is_not_followed(pets, where, to):
    before = load(pets, size=8)
    (pets / where).symlink_to(to)
    with pytest.warns(UserWarning, match=f"1 not regular file, such as {where}"):
        same(load(pets, size=8), before)


@pytest.mark.parametrize("kind", ["gif", "tiff", "png", "webp"])
@pytest.mark.parametrize("few", [{}, dict(n_train=4, valid=0)])
def test_of_many_pictures_in_a_file_the_first_is_taken_and_that_is_said(pets, kind, few):
    noise(7).save(pets / "cat" / f"many.{kind}", save_all=True, append_images=[noise(8), noise(9)])
    with pytest.warns(UserWarning, match=rf"1 file with more than one picture, of which the first .* cat/many\.{kind}"):
        load(pets, **few)


def test_a_photo_with_its_preview_is_one_picture(pets, recwarn):
    noise(7).save(pets / "cat" / "photo.jpg", "MPO", save_all=True, append_images=[noise(8)])
    load(pets)
    assert not [w for w in recwarn if "more than one" in str(w.message)]


@pytest.mark.parametrize("kind", ["gif", "tiff"])
def test_the_first_of_many_pictures_is_read_where_the_next_is_broken(tmp_path, kind):
    first, both = io.BytesIO(), io.BytesIO()
    noise(7).save(first, kind)
    noise(7).save(both, kind, save_all=True, append_images=[noise(8)])
    cut = io.BytesIO(both.getvalue()[:-40])
    assert np.array_equal(rs._pixels(cut, None)[0], rs._pixels(first, None)[0])


def test_links_that_lead_in_all_ways_are_refused(tmp_path):
    folders = [tmp_path / "web" / f"{i}" for i in range(12)]
    for a in folders:
        a.mkdir(parents=True)
    for a in folders:
        for b in folders:
            (a / f"to{b.name}").symlink_to(b)
    with pytest.raises(ValueError, match="in more than 100 ways"):
        load(tmp_path / "web", size=8)


def test_links_to_pictures_elsewhere_are_followed(pets, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cat").symlink_to(pets / "cat")
    (linked / "dog").mkdir()
    for p in (pets / "dog").iterdir():
        (linked / "dog" / p.name).symlink_to(p)
    same(load(linked, size=8), load(pets, size=8))


def test_names_that_are_not_utf8(pets):
    os.rename(os.fsencode(pets / "cat" / "1.png"), os.fsencode(pets / "cat") + b"/caf\xe9.png")
    assert len(load(pets, size=8, valid=0).x_train) == 20


# what unpacks to more than it seems


def test_what_does_not_fit_is_refused_with_what_it_needs(pets, tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "big.npz", x_train=np.zeros((50, 200, 200), np.uint8), y_train=np.arange(50) % 2)
    monkeypatch.setenv("ROBUSTLIT_MEMORY_GB", "0.001")
    with pytest.raises(ValueError, match="24 pictures .* of 300x300 pixels would need 0.0 GB .* limit is 0.001 GB"):
        load(pets, size=300)
    with pytest.raises(ValueError, match="the arrays in .*big.npz would need"):
        load(tmp_path / "big.npz")
    with pytest.raises(ValueError, match="images of 1x300x300 would need"):
        load("digits", size=300)
    assert len(load(pets, size=100, n_train=4, n_test=4, valid=0).x_train) == 4
    for bad in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("ROBUSTLIT_MEMORY_GB", bad)
        with pytest.raises(ValueError, match="ROBUSTLIT_MEMORY_GB must be a number of gigabytes above 0"):
            load("digits", size=9)


def test_a_member_of_a_zip_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for kind in "ab":
            z.writestr(f"{kind}/1.bmp", bytes(5_000_000))
    assert (tmp_path / "bomb.zip").stat().st_size < 20_000
    monkeypatch.setenv("ROBUSTLIT_MEMORY_GB", "0.004")
    with pytest.raises(ValueError, match="bomb.zip, member a/1.bmp would need"):
        load(tmp_path / "bomb.zip", size=8)


def test_no_more_of_a_member_is_unpacked_than_is_looked_at(tmp_path):
    "Of what is no picture that is its beginning, however much there is of it."
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for kind in "ab":
            z.writestr(f"{kind}/1.png", bytes(40_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="zeros.zip, member a/1.png: nothing in it tells of what format it is"):
            load(tmp_path / "zeros.zip", size=8)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_large_arrays_are_resized_a_few_at_a_time(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (12, 500, 600, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", x_train=x, y_train=np.arange(12) % 2, x_test=x[:2], y_test=[0, 1])
    whole, seen, resize = load(tmp_path / "large.npz", size=16, valid=0), [], rd.F.interpolate
    monkeypatch.setattr(rd.F, "interpolate", lambda a, *args, **kw: seen.append(a.shape) or resize(a, *args, **kw))
    big = rd._resized(torch.zeros(1, 1).expand(5, 1, 6000, 6000), 16, torch.arange(1, 5))
    assert big.shape == (4, 1, 16, 16) and seen == [(1, 1, 6000, 6000)] * 4
    one = torch.cat([rd._resized(x[None], 16, torch.arange(1)) for x in load(tmp_path / "large.npz").x_test])
    assert torch.equal(one, whole.x_test)


def test_pillows_own_limit_is_named(pets, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ValueError, match="cannot read the image .*decompression bomb"):
        load(pets, size=8)


def test_large_pictures_are_decoded_one_at_a_time(pets, monkeypatch):
    inside, most, turn = [], [], threading.Lock()
    white = rs._on_white

    def counted(im):
        with turn:
            inside.append(1)
            most.append(len(inside))
        threading.Event().wait(0.005)
        with turn:
            inside.pop()
        return white(im)

    monkeypatch.setattr(rs, "_on_white", counted)
    monkeypatch.setattr(rs.os, "cpu_count", lambda: 8)
    decode = lambda: rs._from_pictures(rs._Files(pets), 8)
    before = decode()
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr(rs, "_LARGE", 100)
    assert np.array_equal(decode()["x_train"], before["x_train"]) and max(most) == 1


def test_a_huge_jpeg_is_decoded_at_less_than_its_size(tmp_path, monkeypatch):
    file = io.BytesIO()
    Image.linear_gradient("L").resize((640, 480)).save(file, "JPEG")
    full, *_ = rs._pixels(io.BytesIO(file.getvalue()), 16)
    sizes, square = [], rs._square
    monkeypatch.setattr(rs, "_square", lambda im, size: sizes.append(im.size) or square(im, size))
    monkeypatch.setattr(rs, "_HUGE", 640 * 480 - 1)
    small, *_ = rs._pixels(io.BytesIO(file.getvalue()), 16)
    assert sizes == [(80, 60)] and np.abs(small.astype(int) - full).max() <= 3
    assert rs._pixels(file, None)[0].shape == (480, 640)


def test_sixteen_bits_in_bands_are_what_they_were():
    deep = np.random.default_rng(0).integers(0, 65536, (700, 5)).astype(np.uint16)
    want = ((deep.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    assert np.array_equal(np.asarray(rs._eight_bits(Image.fromarray(deep))), want)


# only what is asked for


def stored_as(kind, i):
    return {
        "RGB": noise(i),
        "L": noise(i).convert("L"),
        "LA": noise(i).convert("LA"),
        "1": noise(i).convert("1"),
        "P": noise(i).convert("L").convert("P"),
        "RGBA": noise(i).convert("RGBA"),
        "I;16": Image.fromarray(np.full((10, 12), 4000 * (i + 1), np.uint16)),
    }[kind]


@pytest.mark.parametrize("kinds", [("RGB",), ("L",), ("L", "RGB"), ("LA", "1", "P"), ("L", "RGBA"), ("I;16",)])
@pytest.mark.parametrize("parts", [False, True])
def test_a_few_are_the_same_as_a_few_of_all(tmp_path, monkeypatch, kinds, parts):
    for part in ("train", "test") if parts else ("",):
        for c in "ab":
            (tmp_path / "set" / part / c).mkdir(parents=True)
            for i in range(15):
                kind = kinds[-1] if i == 7 else kinds[i % max(1, len(kinds) - 1)]
                stored_as(kind, i).save(tmp_path / "set" / part / c / f"{i}.png")
    asked = dict(size=9, n_train=4, n_test=2, valid=3, seed=5)
    seen, picture = [], rs._picture
    monkeypatch.setattr(rs, "_picture", lambda files, name, size: seen.append(size) or picture(files, name, size))
    few = load(tmp_path / "set", **asked)
    assert seen.count(9) <= 10 or kinds == ("I;16",)
    monkeypatch.setattr(rs, "_few", lambda *_: None)
    same(few, load(tmp_path / "set", **asked))


def test_a_few_leave_a_small_cache_and_use_the_one_of_all(pets, cache):
    load(pets, size=40, n_train=2, n_test=2, valid=0)
    load(pets, size=40, n_train=2, n_test=2, valid=0)
    (file,) = cache.glob("*.npz")
    assert file.stat().st_size < 4 * 3 * 40 * 40 + 3000
    load(pets, size=40)
    file.unlink()
    load(pets, size=40, n_train=2, n_test=2, valid=0)
    assert len(list(cache.glob("*.npz"))) == 1


def test_arrays_are_resized_only_where_they_are_kept(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (600, 3, 9, 7), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=np.arange(600) % 3)
    whole, counted, resized = load(tmp_path / "mine.npz", size=12, valid=0), [], rd._resized
    monkeypatch.setattr(rd, "_resized", lambda x, size, at: counted.append(len(at)) or resized(x, size, at))
    few = load(tmp_path / "mine.npz", size=12, valid=0, n_train=6, n_test=3)
    assert sum(counted) == 9
    same(few, whole.subset(6, 3))


def test_stress_decodes_the_images_that_it_draws(pets, monkeypatch):
    want = images_and_labels(load("digits", size=12), 20)
    few = _drawn_data("digits", 12, 20)
    assert len(few.x_test) == 20 and all(torch.equal(a, b) for a, b in zip(want, images_and_labels(few, 20)))
    seen, picture = [], rs._picture
    monkeypatch.setattr(rs, "_picture", lambda *a: seen.append(a) or picture(*a))
    few = _drawn_data(str(pets), 13, 2)
    assert len(seen) == 5 and few.classes == ("cat", "dog")  # the first one is looked at for its size
    assert torch.equal(images_and_labels(few)[0], images_and_labels(load(pets, size=13), 2)[0])


# the cache


def test_a_cache_with_other_arrays_is_noticed(pets, cache):
    good = load(pets, size=8)
    (path,) = cache.glob("*.npz")
    with np.load(path) as f:
        arrays = {k: f[k] for k in f}
    np.savez(path, **arrays | {"x_train": arrays["x_train"][::-1]})
    with pytest.warns(UserWarning, match="holds other arrays than were written there: decoding it again"):
        same(load(pets, size=8), good)
    load(pets, size=9)
    (other,) = set(cache.glob("*.npz")) - {path}
    path.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="holds other arrays"):
        same(load(pets, size=8), good)


def test_the_cache_is_bounded_and_the_oldest_goes_first(pets, cache, monkeypatch):
    files = {}
    for age, size in enumerate((20, 21, 22)):
        load(pets, size=size)
        (files[size],) = set(cache.glob("*.npz")) - set(files.values())
        os.utime(files[size], (1000 + age, 1000 + age))
    load(pets, size=20)  # used just now
    (cache / "mine-of-my-own.npz").write_bytes(bytes(100_000))
    total = sum(p.stat().st_size for p in files.values())
    monkeypatch.setenv("ROBUSTLIT_CACHE_GB", str((total + 100) / 1e9))
    load(pets, size=12)
    assert files[20].exists() and not files[21].exists() and files[22].exists()
    assert (cache / "mine-of-my-own.npz").exists()
    monkeypatch.setenv("ROBUSTLIT_CACHE_GB", "0.00001")
    with pytest.warns(UserWarning, match="the cache may hold 1e-05 GB .*not kept"):
        assert len(load(pets, size=30, valid=0).x_train) == 20
    assert files[20].exists()


def test_the_command_shows_the_cache_and_clears_it(pets, cache, capsys):
    load(pets, size=8)
    (cache / "mine.npz").write_text("my own")
    assert main(["data"]) == 0
    assert f"decoded datasets are kept in {cache}: 1 of them, 0.000 GB of at most 10" in capsys.readouterr().out
    assert main(["data", "--clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 decoded dataset, 0.000 GB, from ")
    assert [p.name for p in cache.iterdir()] == ["mine.npz"]
    assert main(["data", "--clear"]) == 0 and "removed 0 decoded datasets" in capsys.readouterr().out


def test_clearing_leaves_alone_what_another_process_is_making(pets, cache):
    load(pets, size=8)
    (path,) = cache.glob("*.npz")
    with rs.FileLock(path.with_suffix(".lock")):
        assert rs.clear_cache() == (0, 0) and path.exists() and path.with_suffix(".lock").exists()
    (cache / f".{path.stem}.abc.tmp").write_bytes(b"left by a process that was killed")
    assert rs.clear_cache()[0] == 1 and not list(cache.iterdir())


# zips of Windows


@pytest.mark.parametrize("system", [0, 3])
def test_backslashes_in_a_zip_are_slashes(pets, tmp_path, system):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as z:
        for p in sorted(pets.rglob("*.png")):
            info = zipfile.ZipInfo("pets\\" + str(p.relative_to(pets)).replace("/", "\\"))
            info.create_system = system
            z.writestr(info, p.read_bytes())
        z.writestr("pets\\empty\\", b"")
    d = load(tmp_path / "w.zip", size=8, valid=0)
    assert d.classes == ("cat", "dog", "empty") and torch.equal(d.x_train, load(pets, size=8, valid=0).x_train)


def test_a_link_in_a_zip_is_no_picture(pets, tmp_path):
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as z:
        for p in pets.rglob("*.png"):
            z.write(p, p.relative_to(pets))
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    with pytest.warns(UserWarning, match="1 not regular file, such as cat/link.png"):
        same(load(tmp_path / "l.zip", size=8), load(pets, size=8))


def test_a_zip_that_is_cut_off_says_so(pets, tmp_path):
    for name, end in (("half", "zip"), ("half", "npz")):
        np.savez(tmp_path / "whole", x_train=np.zeros((9, 8, 8), np.uint8), y_train=np.arange(9))
        (tmp_path / f"{name}.{end}").write_bytes((tmp_path / "whole.npz").read_bytes()[:500])
        with pytest.raises(ValueError, match="its end is missing, as after an interrupted download"):
            load(tmp_path / f"{name}.{end}")


# idx files


def idx(a):
    a = np.asarray(a, np.uint8)
    return b"\0\0\x08" + bytes([a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape) + a.tobytes()


def plant(folder, names=rs._IDX, write=lambda p, data: p.write_bytes(data), classes=10, first=0):
    "Four small idx files; the images of training."
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 256, (n * classes, 4, 4), dtype=np.uint8) for n in (4, 2)]
    for k, a in enumerate(x):
        write(folder / names[2 * k], idx(a))
        write(folder / names[2 * k + 1], idx(np.arange(len(a)) % classes + first))
    return x


packed = lambda p, data: Path(f"{p}.gz").write_bytes(gzip.compress(data))
dotted = lambda p, data: p.with_name(p.name.replace("-idx", ".idx")).write_bytes(data)


@pytest.mark.parametrize("write", [packed, dotted, lambda p, data: packed(Path(str(p).replace("-idx", ".idx")), data)])
@pytest.mark.parametrize("place", ["MNIST/raw", "mnist"])
def test_mnist_with_packed_files_only(tmp_path, write, place):
    x = plant(tmp_path / place, write=write)
    d = load("mnist", tmp_path, valid=0, download=False)
    assert np.array_equal(d.x_train[:, 0], x[0]) and np.array_equal(d.x_test[:, 0], x[1])
    assert d.y_train.tolist() == [i % 10 for i in range(40)] and rs.available(tmp_path)["mnist"] == tmp_path / place
    same(load(tmp_path / place, valid=0), d)


def test_what_a_download_left_unfinished_is_passed_over_and_named(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    x = plant(raw)
    (raw / rs._IDX[2]).unlink()
    assert "mnist" not in rs.available(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"raw is passed over: without {rs._IDX[2]}"):
        load("mnist", tmp_path, download=False)
    plant(tmp_path / "mnist")
    assert np.array_equal(load("mnist", tmp_path, valid=0, download=False).x_train[:, 0], x[0])
    with pytest.raises(ValueError, match=f"{rs._IDX[2]} is missing"):
        load(raw)


@pytest.mark.parametrize("pack", [False, True])
def test_a_file_that_is_cut_off_is_named(tmp_path, pack):
    raw = tmp_path / "MNIST" / "raw"
    plant(raw, write=packed if pack else lambda p, data: p.write_bytes(data))
    file = raw / (rs._IDX[0] + ".gz" * pack)
    for n in (file.stat().st_size // 2, 7, 0):
        file.write_bytes(file.read_bytes()[:n])
        with pytest.raises(ValueError, match=f"{file.name} is cut off, as by an interrupted download"):
            load("mnist", tmp_path, download=False)


def test_a_whole_packed_file_stands_in_for_a_cut_one(tmp_path):
    x = plant(tmp_path / "MNIST" / "raw")
    plant(tmp_path / "MNIST" / "raw", write=packed)
    file = tmp_path / "MNIST" / "raw" / rs._IDX[0]
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(load("mnist", tmp_path, valid=0, download=False).x_train[:, 0], x[0])


def test_no_more_is_unpacked_than_the_head_of_a_file_says(tmp_path):
    plant(tmp_path / "mnist", write=packed)
    bomb = idx(np.zeros((40, 4, 4))) + bytes(10**7)
    (tmp_path / "mnist" / f"{rs._IDX[0]}.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(ValueError, match="holds more than the 640 bytes that it says"):
        load("mnist", tmp_path, download=False)
    (tmp_path / "mnist" / f"{rs._IDX[0]}.gz").write_bytes(gzip.compress(b"\0\0\x08\3" + b"\xff" * 12))
    with pytest.raises(ValueError, match="GB of memory, and the limit is"):
        load("mnist", tmp_path, download=False)


def test_a_download_completes_what_an_earlier_one_left(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "MNIST" / "raw").mkdir(parents=True)
    (home / "MNIST" / "raw" / rs._IDX[0]).write_bytes(b"half")
    (home / ".download-mnist-killed").mkdir()
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: plant(Path(root) / "MNIST" / "raw"))
    assert len(load("mnist", valid=0).x_train) == 40
    assert not list(home.glob(".download*"))


def test_kmnist_by_name(tmp_path):
    x = plant(tmp_path / "KMNIST" / "raw")
    d = load("kmnist", tmp_path, valid=0, download=False)
    assert np.array_equal(d.x_test[:, 0], x[1]) and d.classes == tuple(torchvision.datasets.KMNIST.classes)


@pytest.mark.parametrize("split", ["byclass", "bymerge", "balanced", "letters", "digits", "mnist"])
def test_emnist_by_name(tmp_path, split):
    theirs = torchvision.datasets.EMNIST.classes_split_dict[split]
    theirs = [c for c in theirs if c != "N/A"]
    x = plant(
        tmp_path / "EMNIST" / "raw", rs._idx_names(split), packed, len(theirs), first=1 if split == "letters" else 0
    )
    name = "emnist" if split == "balanced" else f"emnist_{split}"
    d = load(name, tmp_path, valid=0, download=False)
    assert d.classes == tuple(theirs) and d.y_train.tolist()[: len(theirs)] == list(range(len(theirs)))
    assert np.array_equal(d.x_train[:, 0], x[0].transpose(0, 2, 1))
    others = {n for n in rs.available(tmp_path) if n.startswith("emnist")}
    assert others == {name}


def test_emnist_is_downloaded_by_its_split(tmp_path, monkeypatch):
    def theirs(root, split, download):
        plant(Path(root) / "EMNIST" / "raw", rs._idx_names(split), packed, 26, 1)

    monkeypatch.setattr(torchvision.datasets, "EMNIST", theirs)
    assert load("emnist_letters", valid=0).classes[25] == "z"
    with pytest.raises(ValueError, match="did you mean 'emnist'"):
        load("EMNIST")


# a page


def test_no_text_of_a_user_is_a_tag_on_the_page():
    evil, clean = "<script>alert('1')</script>&<img src=x onerror=alert(1)>", "clean"
    names = dict(suite=[clean, evil, evil, "linf"], stressor=[clean, evil + "$x_{", "_own", f"$\\frac{evil}"])
    numbers = dict(strength=[0.0, 1.0, 1.0, 0.1], accuracy=[90.0, 50.0, 40.0, 1.0], low=80.0, high=95.0, ece=1.0)
    rows = pd.DataFrame(names | numbers | dict(unit=["", evil + "$\\x$", evil, "eps"], n=9, error=["", evil, "", ""]))
    checks = pd.DataFrame(dict(check=[evil], kind=[evil], red=[True], finding=[evil]))
    checks.attrs |= dict(eps=0.1, images=evil)
    page = report_page(evil + "\udcff", rows, checks)
    assert "<script" not in page and "<img src" not in page and page.count("&lt;script") >= 9
    page.encode()


# modes of files


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077])
@pytest.mark.parametrize("exclusive", [False, True])
def test_new_files_have_the_mode_that_umask_leaves(tmp_path, mask, exclusive):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "new" / "a.txt", lambda f: f.write(b"one"), exclusive)
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_cache_has_the_mode_that_umask_leaves(pets, cache):
    before = os.umask(0o007)
    try:
        load(pets, size=8)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in cache.glob("*.npz")} == {0o660}


def test_a_plan_takes_what_loading_and_choosing_took():
    y = torch.arange(90) % 3
    plan = partial(rd._plan, dict(train=y))
    (_, train), (_, test) = plan(valid=0)["train"], plan(valid=0)["test"]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(90)) and len(test) == 18
    few = plan(valid=0, n_train=6, n_test=3, seed=2)
    assert set(few["train"][1].tolist()) <= set(train.tolist()) and few["test"][0] == "train"
