"""Child processes that are forked, so that they may die in the middle of their work."""

import os

__all__ = ["in_child"]


def in_child(action):
    """Exit code of a child process that does something; it has its own memory and locks."""

    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
