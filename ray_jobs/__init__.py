"""Runs the library on Ray: the command line, the pipeline, one file per stage, training workers and serving."""

from ray_jobs.runtime.environment import set_defaults

# Must run before anything imports Ray or an engine.
set_defaults()
