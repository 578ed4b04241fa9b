"""For all tests."""

import os
import sys

import pytest
from hypothesis import settings

# A test's time is a measure of the machine and of what else it does. CI always tries the same examples, others search for new ones.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")


@pytest.fixture(scope="module", autouse=True)
def no_process_group_is_left():
    """vLLM leaves one behind in the process that it ran in: a target would be sharded over it."""
    yield
    if (torch := sys.modules.get("torch")) and torch.distributed.is_initialized():
        if vllm := sys.modules.get("vllm.distributed"):
            vllm.cleanup_dist_env_and_memory()
        else:
            torch.distributed.destroy_process_group()
