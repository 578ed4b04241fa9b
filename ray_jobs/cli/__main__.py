"""Entry point of `python -m ray_jobs.cli`, the `profuser` command."""

from ray_jobs.cli.app import main

if __name__ == "__main__":
    main()
