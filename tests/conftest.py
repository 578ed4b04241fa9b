"""For all tests."""

import os

from hypothesis import settings

# A test's time is a measure of the machine and of what else it does. CI always tries the same examples, others search for new ones.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")
