"""File descriptors: a process may ask for more than it is given, up to a limit of the machine's."""

import resource

MOST, SPARE = 65536, 100  # what we ask for at most; what is left for everything but runs


def room(per_run: int) -> int:
    """How many runs this process can have open at once, at so many descriptors each; it now may have as many as it ever may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, (most - SPARE) // per_run)
