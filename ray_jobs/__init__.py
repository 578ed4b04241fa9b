"""The wiring: the command line, the pipeline, a file per stage that is also a script, serving."""

from ray_jobs.environment import set_defaults

# Before anything imports Ray or an engine: a stage that runs as a script has done so when its own last line is reached.
set_defaults()
