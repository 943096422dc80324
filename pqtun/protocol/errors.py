"""The two kinds of error that every room above this one handles."""


class UserError(Exception):
    """Something a person has to put right.

    The text is one line that says what is wrong and what to do. The command line prints it and exits with a code
    other than 0; no traceback is shown. It never holds secret bytes.
    """


class MessageError(ValueError):
    """Something that came from the network and is not accepted.

    ``reason`` is a short snake_case word, used as the name of a drop counter. State has not advanced when this is
    raised.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
