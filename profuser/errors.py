"""The exceptions of this project: one root, and `UserError` for what the user can fix."""


class ProfuserError(Exception):
    """Root of all errors that this project raises. The command line exits with 1."""


class UserError(ProfuserError):
    """A mistake in the user's input (recipe, corpus, path, model). One line with its location and how to fix it; exit 2."""


class ArtifactError(ProfuserError):
    """A stored artifact cannot be read: it is truncated, foreign, or from another tokenizer or codec version."""


class StorageError(ProfuserError):
    """The storage cannot be used: its disk is full, or it stayed read-only or unreachable for longer than the retry time."""


class AlignmentError(ProfuserError):
    """Two tokenizations do not spell the same bytes, or a tokenizer cannot be expressed in bytes at all."""


class EngineError(ProfuserError):
    """An engine could not load its model or died; the message names the model and the fix."""


class TrainingError(ProfuserError):
    """Training cannot start or continue: the gradient stays non-finite, memory ran out, or the examples do not fit the settings."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Returns an error's message on one line of at most `limit` characters, or its type's name if the message is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
