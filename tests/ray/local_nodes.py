"""Nodes for Ray's autoscaler that are processes of this machine."""

import functools
from unittest import mock

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

RayParams = parameter.RayParams


def _with_memory(**params):
    return RayParams(memory=params["resources"].pop("memory", None), **params)


class LocalNodes(FakeMultiNodeProvider):
    """Ray's own, which knows no memory: Ray Data asks for nodes with as much of it as those that it has, and none would do."""

    @functools.wraps(FakeMultiNodeProvider._create_node_with_resources_and_labels)
    def _create_node_with_resources_and_labels(self, *args, **kwargs):
        with mock.patch.object(parameter, "RayParams", _with_memory):
            super()._create_node_with_resources_and_labels(*args, **kwargs)
