"""Every fault a user can meet. The command line prints the message and exits with `exit_code`.

Each message says what is wrong, where, and what to do next. The runtime ships alone, so the base
class and the runtime's own faults live in :mod:`sdcompress.runtime.errors`.
"""

from sdcompress.runtime.errors import BundleError, DeviceError, InputError, SdcompressError

__all__ = [
    "BundleError",
    "CalibrationError",
    "CompressionError",
    "ConversionError",
    "DeviceError",
    "EvaluationError",
    "InputError",
    "InterruptedStageError",
    "OutputBusyError",
    "PreflightError",
    "QualityGateFailed",
    "QualityUndecided",
    "RecipeError",
    "SdcompressError",
    "SourceError",
    "StorageError",
]


class RecipeError(SdcompressError):
    """The recipe, or a ``--set`` on top of it, is not valid. Lists every fault found."""


class SourceError(SdcompressError):
    """The model cannot be found, is incomplete, or is stored in a refused format."""


class ConversionError(SdcompressError):
    """A component could not be turned into OpenVINO IR."""


class CalibrationError(SdcompressError):
    """Calibration prompts are unusable, or recorded inputs are not finite."""


class CompressionError(SdcompressError):
    """A compression method does not apply to the component it was asked for."""


class EvaluationError(SdcompressError):
    """Pictures or figures could not be produced."""


class StorageError(SdcompressError):
    """A result cannot be written, most often because the disk is full."""


class InterruptedStageError(SdcompressError):
    """The process of a stage died, most often because memory ran out."""


class OutputBusyError(SdcompressError):
    """Another run holds the output folder."""


class PreflightError(SdcompressError):
    """A run would need more memory or disk than there is."""


class QualityGateFailed(SdcompressError):  # noqa: N818 - it is an outcome, not a mistake
    """The candidate was built and measured, and broke at least one budget of its recipe."""

    exit_code = 3


class QualityUndecided(SdcompressError):  # noqa: N818 - it is an outcome, not a mistake
    """No budget is broken, but the pictures drawn do not prove that all of them hold."""

    exit_code = 4
