"""The faults the runtime can meet; each message says what, where, and what to do next."""


class SdcompressError(Exception):
    """Base of every fault that is reported to the user without a traceback."""

    exit_code = 2


class BundleError(SdcompressError):
    """A bundle or IR folder is incomplete, altered or of an unknown format."""


class DeviceError(SdcompressError):
    """The requested device or execution precision is not available here."""


class InputError(SdcompressError):
    """A prompt or setting of a generation cannot be used."""


class NotFiniteError(SdcompressError):
    """A model produced NaN or infinite values."""


class CancelledError(SdcompressError):
    """A step callback asked to stop."""
