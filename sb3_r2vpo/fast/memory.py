"""What large minibatches need besides arithmetic: memory."""

import torch as th

#: glibc learns from no larger block
LARGEST_LESSON = 32 * 2**20 - 2**16


def keep_freed_memory() -> None:
    """
    Let glibc keep what a minibatch has freed for the next one. It would give it back to the system and get it again page
    by page, a fifth and more of the time with minibatches of thousands of samples. But it keeps as much as twice the
    largest block that the process has ever freed, and 64 MiB at most. Other C libraries are not affected.
    """
    th.empty(LARGEST_LESSON, dtype=th.uint8)
