"""torchlet.backends.mps: not used here."""


def is_available() -> bool:
    """False: it is not used."""
    return False


def is_built() -> bool:
    """False: it is not used."""
    return False
