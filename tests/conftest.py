"""What all tests share: fixed random data, so that a failure seen once is seen again."""

import os

import hypothesis

# `fixed` draws the same examples on every run and on every machine. `HYPOTHESIS_PROFILE=explore` searches further
# with new ones, and is what to use while looking for a bug.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
