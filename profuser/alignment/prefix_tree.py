"""Numbers the prefixes of byte strings, so that "these bytes begin with those" is one comparison of integers.

Legend: V byte strings, A bytes of all of them together.
"""

import numpy as np
from jaxtyping import Int, UInt8


def prefix_nodes(
    blob: UInt8[np.ndarray, "A"], starts: Int[np.ndarray, "V"], lengths: Int[np.ndarray, "V"]
) -> Int[np.ndarray, "A"]:
    """Returns the nodes of the tree of all prefixes: `nodes[starts[i] + n - 1]` is the node of the first n bytes of string i.

    Two prefixes have the same node exactly if they are the same bytes. The tree is built one level at a time, over all
    strings at once. Unlike hashes of the prefixes, nodes cannot collide.
    """
    nodes = np.full(len(blob), -1, dtype=np.int64)
    parents = np.zeros(len(starts), dtype=np.int64)
    num_nodes = 1
    for depth in range(int(lengths.max(initial=0))):
        deep = lengths > depth
        places = starts[deep] + depth
        unique, found = np.unique(parents[deep] * 256 + blob[places], return_inverse=True)
        nodes[places] = parents[deep] = found + num_nodes
        num_nodes += len(unique)
    return nodes
