"""What files cost that are larger than they look: seconds and memory of a process that loads them, or what it says instead.

The folder, zip and array files are written anew, a few gigabytes in all, and removed. Usage: make bench
"""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "large_files.csv"
LIMIT = 2.0  # gigabytes more than a process that loads nothing; `load` warns from here on, and says how much it will be
LOAD = """
import resource, sys, time, warnings
from robustlit.data import load
begin = time.perf_counter()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    try:
        told = f"{len(load(sys.argv[1], valid=0, **eval(sys.argv[2])).x_train)} images" if sys.argv[1] else "nothing to load"
    except (ValueError, FileNotFoundError) as e:
        told = f"{type(e).__name__}: {e}"
print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, sep="\\n")
print(" ".join([told, *(f"warning: {w.message}" for w in said)]).replace("\\n", " "))
"""


def pictures(folder):
    "Sixteen pictures of 9000 x 9000 pixels in two classes: some kilobytes each on disk, 243 MB in memory."
    for i in range(16):
        (folder / "cd"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9000, 9000), (i, 2 * i, 255 - i)).save(folder / "cd"[i % 2] / f"{i}.png")
    return folder


def bomb(path):
    "A zip of about 1 MB with a picture that unpacks to 1 GB."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for kind in "cd":
            with z.open(f"{kind}/0.png", "w") as member:
                for _ in range(1000 if kind == "c" else 1):
                    member.write(bytes(1 << 20) if kind == "c" else b"no picture")
    return path


def idx(folder, n):
    "MNIST's four packed files, where the training images are `n` of 28 x 28."
    folder.mkdir()
    for part, many in (("train", n), ("t10k", 100)):
        for kind, tail in (("images-idx3", (28, 28)), ("labels-idx1", ())):
            block = (np.arange(28 * 28 * 10_000, dtype=np.uint32) % 10).astype(np.uint8).tobytes()
            blocks, rest = divmod(many * int(np.prod(tail)), len(block))
            with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb", compresslevel=1) as f:
                f.write(b"".join(v.to_bytes(4, "big") for v in (0x801 + len(tail), many, *tail)))
                for _ in range(blocks):
                    f.write(block)
                f.write(block[:rest])
    return folder


def arrays(path, n, side):
    "An npz of `n` training images of side x side in three colours."
    x = np.broadcast_to(np.arange(256, dtype=np.uint8).repeat(3)[: side * 3].reshape(side, 3), (n, side, side, 3))
    np.savez(path, x_train=x, y_train=np.arange(n) % 10, x_test=x[:20], y_test=np.arange(20) % 10)
    return path


CASES = {
    "16 pictures of 9000 x 9000": (lambda at: pictures(at / "pictures"), [{}, dict(size=32)]),
    "a zip that unpacks to 1 GB": (lambda at: bomb(at / "bomb.zip"), [dict(size=32)]),
    "MNIST's files with 1 GB of pixels": (lambda at: idx(at / "idx1", 1_300_000), [{}, dict(n_train=100, n_test=20)]),
    "MNIST's files with 3 GB of pixels": (lambda at: idx(at / "idx3", 3_900_000), [dict(n_train=100, n_test=20)]),
    "an npz of 1 GB": (lambda at: arrays(at / "one.npz", 6_600, 224), [{}, dict(size=32), dict(n_train=20, n_test=20)]),
    "an npz of 3 GB": (lambda at: arrays(at / "three.npz", 20_000, 224), [dict(size=32), dict(n_train=20, n_test=20)]),
}


def measure(path, options, cache):
    "Seconds, gigabytes at the peak and the answer of a process of its own."
    env = dict(os.environ, ROBUSTLIT_CACHE=str(cache))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path), repr(options)], capture_output=True, text=True, env=env, timeout=900
    )
    if done.returncode:
        return float("nan"), float("nan"), (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    seconds, peak, told = done.stdout.split("\n")[:3]
    return float(seconds), float(peak) / 1e9, told.replace(f"{cache.parent}/", "").replace("case/", "")


def main():
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        _, nothing, _ = measure("", {}, Path(tmp) / "cache")
        for name, (make, asked) in CASES.items():
            at = Path(tmp) / "case"
            at.mkdir()
            path = make(at)
            disk = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
            for options in asked:
                seconds, peak, told = measure(path, options, Path(tmp) / "cache")
                words = ", ".join(f"{k}={v}" for k, v in options.items()) or "everything"
                rows.append([name, round(disk / 1e9, 4), words, round(seconds, 1), round(peak - nothing, 2), told])
                print(*rows[-1], sep=" | ", flush=True)
            shutil.rmtree(at)
            shutil.rmtree(f"{tmp}/cache", ignore_errors=True)
    table = pd.DataFrame(rows, columns=["input", "gb_on_disk", "asked_for", "seconds", "gb_more", "answer"])
    table.to_csv(RESULTS, index=False)
    said = table.answer.str.extract(r"may take ([\d.]+) GB")[0].astype(float)
    heavy = table[table.gb_more > 1.05 * said.fillna(LIMIT)]
    return 0 if heavy.empty else "more memory than was said:\n" + heavy.to_string()


if __name__ == "__main__":
    sys.exit(main())
