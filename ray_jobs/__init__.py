"""The wiring on Ray: the command line, the pipeline, a file per stage, training workers, serving."""

from ray_jobs.runtime.environment import set_defaults

# Before anything imports Ray or an engine.
set_defaults()
