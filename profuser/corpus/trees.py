"""Reads the message trees of OpenAssistant: nested, or flat with one message per record."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from profuser.corpus.rows import RawRow, type_name
from profuser.corpus.turns import ROLES, Message, Turn
from profuser.corpus.values import RowFault, text_of

FLAT = ("message_tree_id", "message_id", "parent_id", "text", "role")
ORPHAN = "a message without the one that it replies to"


def best_path(root: Any) -> tuple[list[Turn], int]:
    """Follows the best-ranked reply from the root of a tree; deleted messages are passed over.

    Returns:
        The turns of the path, and the number of messages that are not on it.
    """
    path: list[Turn] = []
    node: Any = root
    while node is not None:
        if not isinstance(node, Mapping) or node.get("role") not in ROLES:
            raise RowFault(f"a message has no known role (message {len(path) + 1})")
        path.append(Turn(Message(ROLES[node["role"]], text_of(node, "text", f" (message {len(path) + 1})"))))
        node = min(_replies(node), key=_rank, default=None)
    return path, _size(root) - len(path)


def _replies(node: Mapping[str, Any]) -> list[Any]:
    replies = [reply for reply in node.get("replies") or [] if isinstance(reply, Mapping)]
    return [reply for reply in replies if not reply.get("deleted")]


def _rank(node: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """Orders replies: a question without an answer last, then by rank."""
    rank = node.get("rank")
    is_ranked = isinstance(rank, (int, float))
    is_unanswered = ROLES.get(str(node.get("role"))) == "user" and not _replies(node)
    return is_unanswered, not is_ranked, rank if is_ranked else 0.0


def _size(root: Mapping[str, Any]) -> int:
    nodes = [root]
    for node in nodes:
        nodes.extend(reply for reply in node.get("replies") or [] if isinstance(reply, Mapping))
    return len(nodes)


def join_trees(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Joins the messages of flat trees, each tree's records one after another, into one nested record; others are unchanged."""
    tree: list[tuple[RawRow, dict[str, Any]]] = []
    for row in rows:
        record = row.record or {}
        is_message = all(field in record for field in FLAT)
        if is_message and (wrong := _wrong_id(record)):
            yield RawRow(row.file, row.line, None, wrong, row.excerpt, row.unit)
            continue
        if tree and not (is_message and record["message_tree_id"] == tree[0][1]["message_tree_id"]):
            yield from _nested(tree)
            tree = []
        if is_message:
            tree.append((row, {**record, "replies": []}))
        else:
            yield row
    yield from _nested(tree)


def _wrong_id(record: Mapping[str, Any]) -> str | None:
    """Returns the fault of a flat message with an id that is neither text nor a number; only the root has no parent."""
    for field in ("message_tree_id", "message_id", "parent_id"):
        value = record[field]
        if not isinstance(value, (str, int)) and (value is not None or field != "parent_id"):
            return f"{field} is {type_name(value)}, expected text"
    return None


def _nested(tree: list[tuple[RawRow, dict[str, Any]]]) -> Iterator[RawRow]:
    """Yields one tree as a record with its root's fields, and each message that does not hang on the root as a fault."""
    nodes = {message["message_id"]: message for _, message in tree}
    roots = [(row, message) for row, message in tree if message["parent_id"] is None]
    for _, message in tree:
        if message["parent_id"] in nodes:
            nodes[message["parent_id"]]["replies"].append(message)
    reached = [message for _, message in roots[:1]]
    for message in reached:
        reached.extend(message["replies"])
    known = {id(message) for message in reached}
    for row, message in tree:
        if roots and message is roots[0][1]:
            yield RawRow(row.file, row.line, {**message, "prompt": message}, None, row.excerpt, row.unit)
        elif id(message) not in known:
            yield RawRow(row.file, row.line, None, f"{ORPHAN} (parent_id)", row.excerpt, row.unit)
