"""The one error that a person, not the program, can mend."""


class InputError(ValueError):
    """Bad input: a config field, a file, a checkpoint, a data set.

    The message is for the person at the keyboard: it names the field or the file and says the way out. Commands print
    it without a traceback and leave with exit status 2 (see `utilgen_jax.main`).
    """
