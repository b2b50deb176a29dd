"""The one base class of errors that their users can mend."""


class FunnelError(Exception):
    """An error that its user can mend; the message says what is wrong and what to do."""
