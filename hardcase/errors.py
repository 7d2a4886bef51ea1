"""Define the errors: the class determines the exit code, and the message says what, where and how to fix it."""

from hardcase.text import hide_passwords


class HardcaseError(Exception):
    """A run failed: a step broke."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message without passwords."""
        return hide_passwords(super().__str__())


class UnavailableError(HardcaseError):
    """A store on S3 did not answer, or refused to, so that what it holds is not known."""


class UncheckedError(HardcaseError):
    """An audit could not be carried out. Nothing is known to be damaged."""

    exit_code = 4


class InputError(HardcaseError):
    """The user's input is at fault."""

    exit_code = 2


class GateRejected(HardcaseError):
    """The gate rejected a model; everything that the run made is stored."""

    exit_code = 3


def build_error(exit_code: int, message: str) -> HardcaseError:
    """Build the error that ends the process with `exit_code`."""
    kinds = {kind.exit_code: kind for kind in (HardcaseError, InputError, GateRejected)}
    return kinds[exit_code](message)
