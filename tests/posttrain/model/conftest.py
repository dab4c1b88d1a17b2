import pytest
import torch


@pytest.fixture
def one_thread():
    """Sums are in one order only when all learners of a comparison use as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
