"""The one error type whose text is written for the user."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, described in one line: what is wrong, where (file, field, image id), what to do.

    The tools print the text and exit with code 2; from Python it is an ordinary ``ValueError``.
    """
