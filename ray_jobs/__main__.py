"""Entry point of `python -m ray_jobs STAGE RECIPE`."""

from ray_jobs.cli.stage_commands import main

if __name__ == "__main__":
    main()
