"""Exceptions of Sfumato: each message names what was wrong, the value, and the remedy."""


class SfumatoError(Exception):
    """Base of every error that Sfumato raises on purpose; the command line prints its message."""

    exit_code = 1


class InvalidRequest(SfumatoError):
    """A parameter, prompt, file name or option that cannot be used as given."""

    exit_code = 2


class ArtifactError(InvalidRequest):
    """A model folder that is missing, incomplete, damaged or not an artifact."""


class CheckpointError(InvalidRequest):
    """A checkpoint that cannot be read: unknown layout, missing part, unsafe format."""


class MissingDependency(InvalidRequest):
    """An optional package that the request needs is not installed."""


class Cancelled(SfumatoError):
    """The work was stopped on request; nothing was written."""
