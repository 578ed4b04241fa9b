"""The errors of this project: one root, and one branch for what the user can fix."""


class ProfuserError(Exception):
    """Root of all errors that this project raises. The command line exits with 1."""


class UserError(ProfuserError):
    """A mistake in what the user gave (recipe, corpus, path, model). One line that says where and how to mend it; exit 2."""


class ArtifactError(ProfuserError):
    """A stored artifact cannot be read as what it should be: truncated, foreign, of another tokenizer or codec version."""


class StorageError(ProfuserError):
    """The storage cannot be used: its disk is full, or it stayed read-only or out of reach for longer than one waits."""


class AlignmentError(ProfuserError):
    """Two tokenizations do not spell the same bytes, or a tokenizer cannot be expressed in bytes at all."""


class EngineError(ProfuserError):
    """An engine could not load its model or died; the message names the model and the remedy."""


class TrainingError(ProfuserError):
    """Training stopped by itself: too many steps in a row with a non-finite loss."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Returns the message of an error on one line of at most `limit` characters; its type's name where the message is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
