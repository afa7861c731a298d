"""Images per second for each corruption: whole batches against the usual loop over images with scikit-image, scipy and Pillow.

Both sides start from the same 200 images as bytes and end with a float tensor. The loop is that of a data loader, as the
published functions are used: a Pillow image to an array, the corruption, back to a Pillow image of bytes, to a tensor.
`array` is the corruption alone, from a float array to a float array, without what surrounds it. The sides take turns, the
best of several rounds counts. With one thread the clock is the process's own (CPU seconds), so that what else runs on
the machine weighs on neither; with more it is the wall's, on a machine that does nothing else.
Usage: python tests/bench/bench_corruptions.py [--images 200] [--rounds 7] [--threads 2] [--save]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_corruptions import PLAIN, pictures

from robustlit import corruptions
from robustlit.corruptions import CORRUPTIONS, corrupt
from robustlit.data import as_images

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "corruptions.csv"
CASES = ((1, 28, "mnist_c"), (3, 32, "cifar_c"))
SEVERITY = 3
AT_LEAST = 20  # times the loop, geometric mean


def seconds(f, clock):
    start = clock()
    f()
    return clock() - start


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def measure(name, x, calibration, rounds, clock):
    "Best seconds of the batch, the loop, and the loop's arithmetic alone, in turns."
    c = corruptions._known[name].table[calibration][SEVERITY - 1]
    shape = (*x.shape[2:], x.shape[1])
    pictures = [pillow(image) for image in x.permute(0, 2, 3, 1).numpy()]
    arrays = list(as_images(x).permute(0, 2, 3, 1).double().numpy())
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    plain = lambda image: np.clip(PLAIN[name](image, c, rng), 0, 1)
    one = lambda p: to_tensor(pillow(np.uint8(plain(np.asarray(p).reshape(shape) / 255) * 255)))
    calls = [
        lambda: corrupt(as_images(x), name, SEVERITY, calibration, generator),
        lambda: torch.stack([one(p) for p in pictures]),
        lambda: [plain(image) for image in arrays],
    ]
    calls[0](), calls[0](), one(pictures[0])
    return [min(times) for times in zip(*([seconds(call, clock) for call in calls] for _ in range(rounds)))]


def mean_ratio(part):
    return float(np.exp(np.log(part).mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="images that both sides corrupt")
    parser.add_argument("--rounds", type=int, default=7, help="how often each side is measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the batched side; the loop has one")
    parser.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock, rows = time.process_time if args.threads == 1 else time.perf_counter, []
    for channels, side, calibration in CASES:
        x = (pictures(args.images, channels, side) * 255).round().byte()
        for name in CORRUPTIONS:
            ours, loop, array = measure(name, x, calibration, args.rounds, clock)
            size = f"{side}x{side}x{channels}"
            rows.append((size, name, *(args.images / t for t in (ours, loop, array)), loop / ours, array / ours))
            print("{:8} {:18} {:>9,.0f}/s {:>9,.0f}/s {:>9,.0f}/s {:8.1f}x {:8.1f}x".format(*rows[-1]), flush=True)
    columns = ["size", "corruption", "batch_per_s", "loop_per_s", "array_per_s", "ratio", "array_ratio"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(images=args.images, threads=args.threads, torch=torch.__version__)
    if args.save:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=RESULTS.parent, delete=False) as f:
            table.to_csv(f, index=False, float_format="%.4g")
        Path(f.name).chmod(0o644)
        Path(f.name).replace(RESULTS)
    for size, part in table.groupby("size"):
        print(f"{size}: geometric mean {mean_ratio(part.ratio):.1f}x, lowest {part.ratio.min():.1f}x")
    got = mean_ratio(table.ratio)
    print(
        f"both: {got:.1f}x the loop (at least {AT_LEAST}): {'met' if got >= AT_LEAST else 'NOT met'}; "
        f"{mean_ratio(table.array_ratio):.1f}x its arithmetic"
    )
    sys.exit(got < AT_LEAST)


if __name__ == "__main__":
    main()
