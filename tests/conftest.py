"""Every test starts from a fixed seed, and memory that torch hands out uninitialised holds NaN."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory() -> Iterator[None]:
    """``torch.empty`` and its kin fill with NaN, so that an element nobody wrote shows at once."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
