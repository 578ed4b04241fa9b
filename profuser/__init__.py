"""ProFuser: fuse several large language models into one, example by example from the better teacher."""

__version__ = "0.1.0"
