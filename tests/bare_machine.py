"""Runs a module as on a bare GPU machine, without Ray, vLLM and MLflow.

`python -m tests.bare_machine MODULE ARGUMENTS`
"""

import runpy
import sys

MISSING = ("ray", "vllm", "mlflow")


class Without:
    """Module finder that hides some installed packages."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args, **kwargs):
        return None if name.partition(".")[0] in MISSING else self.finder.find_spec(name, *args, **kwargs)


if __name__ == "__main__":
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
