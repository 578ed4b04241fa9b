"""`make bench`: runs every benchmark and prints figures of one run side by side, as ratios to the first line of each."""

import platform

import torch

from profuser.artifacts import git_commit
from tests.benchmarks import bench_losses, bench_transport


def main():
    print(f"commit {git_commit()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for benchmark in (bench_transport, bench_losses):
        print(f"\n{benchmark.__doc__.splitlines()[0]}")
        print(f"  {'':<44}{'median':>12}{'ratio':>8}  memory")
        results = benchmark.run()
        first = results[0].seconds
        for result in results:
            print(f"  {result.name:<44}{result.figure:>12}{first / result.seconds:>7.1f}x  {result.memory}")


if __name__ == "__main__":
    main()
