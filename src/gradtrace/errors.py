"""Errors that gradtrace raises: each says what was expected, what came, and what to do.

docs/errors.md has an entry for each class, here or elsewhere in the package; every message ends with where it is.
"""

PAGE = "docs/errors.md"


class GradtraceError(Exception):
    """Base class of every error that gradtrace raises on purpose.

    >>> str(NotScalar("the loss has shape (2,)"))
    'the loss has shape (2,) (docs/errors.md#notscalar)'
    """

    @property
    def said(self) -> str:
        """The message alone, for those who put it into one of their own."""
        return str(self.args[0]) if self.args else type(self).__name__

    @property
    def entry(self) -> str:
        """Where the documentation explains errors of this class; a user's own class goes by its base's."""
        known = next(c for c in type(self).__mro__ if c.__module__.split(".")[0] == __package__)
        return f"{PAGE}#{known.__name__.lower()}"

    def __str__(self) -> str:
        return f"{self.said} ({self.entry})"


class NotOnTape(GradtraceError):
    """A tensor that the tape has not seen, or whose history it does not know."""


class NotScalar(GradtraceError):
    """A loss with more than one element."""


class Unused(GradtraceError):
    """An input that the loss does not depend on."""


class UnknownName(GradtraceError, KeyError):
    """A parameter, component, semiring or kind that does not exist; the message lists those that do."""


class MissingRule(GradtraceError):
    """An operator whose local Jacobian gradtrace does not know."""


class StaleTensor(GradtraceError):
    """A tensor that was changed in place before all that needs it had been computed."""


class NotANumber(GradtraceError):
    """A NaN among the forward values or the derivatives, or a loss that is infinite.

    Raised with a second argument, it says where: a walk adds the call that it is at, unless what was found had waited.
    """


class NotSeen(GradtraceError):
    """A component that exists, but none of whose calls were seen: nothing can be said of it, not even 0 %."""


class CertificateError(GradtraceError):
    """The tape's own gradient differs from autograd's."""


class Unsupported(GradtraceError):
    """Something that gradtrace does not follow (sparse or nested tensors, forward-mode AD, say)."""


class RankFailed(GradtraceError):
    """Another of several processes that trace together failed, or did not answer."""


class BadArgument(GradtraceError):
    """An argument of the wrong kind, or out of range: the message says what is allowed."""


class NotEnoughMemory(GradtraceError):
    """A question that surely does not fit into the memory that there is: the message says what would."""


class NotSaved(GradtraceError):
    """Pickling or copying a tape or a trace, which hold tensors of one forward pass and refer to the program."""


class OptionError(GradtraceError):
    """An option, file or folder with which an experiment cannot run."""


class NotKept(GradtraceError):
    """What a saved trace cannot answer: it keeps winners, and derivatives along them, and no tape."""


class BadTrace(GradtraceError):
    """A file that is not a saved trace, is of another version, or is damaged."""
