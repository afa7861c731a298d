"Every slip gets one clear error: 2,000 bad values, another seed each time; tests/slips.py draws more and says what makes a value bad."

import random

import slips


def test_bad_values_get_a_clear_error_that_names_the_argument():
    seed = random.SystemRandom().randrange(2**32)
    found = slips.try_many(2000, seed)
    bad = [f"{a}: {slip}: {said[:200]}" for slip, a, said in found if a != "clear"]
    assert len(found) >= 2000
    report = "\n".join([f"python tests/slips.py --inputs 2000 --seed {seed}", *bad])
    assert not [b for b in bad if not b.startswith("unclear")] and len(bad) <= 0.02 * len(found), report
