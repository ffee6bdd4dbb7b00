import signal

import pytest
import torch as th


def pytest_configure():
    # A shell starts what it runs in the background with Ctrl+C ignored, and so would be what the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    if "cuda" in item.keywords and not th.cuda.is_available():
        pytest.skip("needs CUDA")


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks are slower on many threads, and results the same on every machine."""
    th.set_num_threads(1)
