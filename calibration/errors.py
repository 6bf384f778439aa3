"""The exception tree: who must be what, what it was instead, and what to type.

Every exception takes one message, so that it survives a trip between processes.
"""


class CalibrationError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigurationError(CalibrationError):
    """An experiment, a setting or a command line that cannot be run."""


class DataError(CalibrationError):
    """An input row or file that cannot be used; names the file, the row and the value."""


class ArtifactError(CalibrationError):
    """A stored artifact that is missing, altered or not of the kind asked for."""


class DiskFullError(CalibrationError):
    """A disk without room for what has to be kept."""


class JobError(CalibrationError):
    """A job that ended without a result; names its log."""


class JudgeError(CalibrationError):
    """Judging that had to stop, or left too much unjudged; says what is kept and how to go on."""
