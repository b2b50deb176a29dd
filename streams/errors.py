"""The one base class of errors that a user can fix."""


class FunnelError(Exception):
    """An error that a user can fix; the message says what is wrong and what to do."""
