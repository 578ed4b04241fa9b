"""Settings and fixtures of all tests."""

import os
import sys

import pytest
from hypothesis import settings

# Each pytest-xdist worker gets its share of the cores: with a thread per core in each, threads that wait for one another cost
# several times what they gain. Set before torch is imported; processes that tests start inherit it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

# A test's time depends on the machine and its load: no deadline. CI always tries the same examples, other runs search for new ones.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")


@pytest.fixture(scope="module", autouse=True)
def no_process_group_is_left():
    """Destroys the process group that vLLM leaves in its process: a target would be sharded over it."""
    yield
    if (torch := sys.modules.get("torch")) and torch.distributed.is_initialized():
        if vllm := sys.modules.get("vllm.distributed"):
            vllm.cleanup_dist_env_and_memory()
        else:
            torch.distributed.destroy_process_group()
