"""The one exception that is meant for the user rather than for us."""


class UserError(Exception):
    """One line for the user: what is wrong, where (file:line, key, tensor), what to do.

    The command line prints it to stderr without a traceback and exits with status 2.
    """
