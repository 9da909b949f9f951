"""Errors that gradtrace raises: each says what was expected, what came, and what to do."""


class GradtraceError(Exception):
    """Base class of every error that gradtrace raises on purpose."""


class NotOnTape(GradtraceError):
    """A tensor that the tape has not seen, or whose history it does not know."""


class NotScalar(GradtraceError):
    """A loss with more than one element."""


class Unused(GradtraceError):
    """An input that the loss does not depend on."""


class UnknownName(GradtraceError, KeyError):
    """A parameter, component, semiring or kind that does not exist; the message lists those that do."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message's repr


class MissingRule(GradtraceError):
    """An operator whose local Jacobian gradtrace does not know."""


class StaleTensor(GradtraceError):
    """A tensor that was changed in place between recording and tracing."""


class NotANumber(GradtraceError):
    """A NaN among the forward values or the local derivatives."""


class CertificateError(GradtraceError):
    """The tape's own gradient differs from autograd's."""


class Unsupported(GradtraceError):
    """Something that gradtrace does not follow (sparse, nested or complex tensors, say)."""
