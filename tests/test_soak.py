"The short form of tests/soak.py: a few runs, a kernel, a worker and a sweep killed, and the records are as if nothing had happened."

from pathlib import Path

import pytest
import soak

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


def test_a_sweep_under_fire_ends_with_the_records_of_a_quiet_one(capsys):
    assert soak.main("--runs 3 --kills 3 --jobs 2 --pause 0.5 --calm 1 --here --seed 5".split()) == 0
    row = capsys.readouterr().out.splitlines()[-2].split()
    assert row[:4] == ["3", "1", "1", "1"] and int(row[4]) > 1 and row[5:] == ["3", "none"]
