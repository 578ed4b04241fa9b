"""Nodes that run as processes."""

import os

import pytest

from cluster.harness.node_processes import NodeProcess
from profuser.errors import ProfuserError


def test_a_node_that_exits_at_once_is_an_error_with_its_last_line():
    node = NodeProcess(["--no-such-option"], os.environ)
    with pytest.raises(ProfuserError, match=r"a node ended at its start: .*--no-such-option"):
        node.wait_started()
    node.kill()
