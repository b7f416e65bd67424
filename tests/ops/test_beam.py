"""``fastseq::beam_step``: the kernel against plain PyTorch, shapes, and what it refuses."""

import pytest
import torch

from fastseq import _extension
from fastseq.ops.beam import beam_step
from fastseq.reference import beam as reference

NAMES = (
    "going", "going_rows", "going_tokens", "ended", "ended_rows", "ended_tokens", "attainable",
    "event",
)  # fmt: skip
needs_extension = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))


def inputs(seed: int, n: int, width: int, k: int, beam: int, length: int = 7) -> tuple:
    """Sentences of all kinds: some at their limit, some within what is given, some with a pool."""
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    continued = random(n, width, k).sort(-1, descending=True).values
    ids = torch.stack([torch.randperm(k + 3, generator=rng)[:k] for _ in range(n * width)])
    scores = random(n, width) - 1
    scores[:, 1::3] = -torch.inf
    worst = torch.where(random(n) > 0, random(n), -torch.inf)
    given, limit = (torch.randint(low, 9, (n,), generator=rng) for low in (1, length))
    return scores, continued, ids.view(n, width, k), worst, given, limit, length, beam, 3, 0.7


@needs_extension
def test_against_plain_torch() -> None:
    happened = set()
    sizes = (1, 1, 2, 1), (1, 4, 8, 4), (5, 1, 8, 4), (7, 4, 8, 4), (3, 3, 2, 5)
    for seed in range(200):
        arguments = inputs(seed, *sizes[seed % len(sizes)])
        expected = reference.beam_step(*arguments)
        found = beam_step(*arguments)
        for name, a, b in zip(NAMES, found, expected, strict=True):
            if not b.is_floating_point():
                # Of continuations without a score it does not matter which is named.
                of = {"going": expected[0], "ended": expected[3]}.get(name.split("_")[0])
                real = torch.ones_like(b, dtype=torch.bool) if of is None else of > -torch.inf
                assert torch.equal(a[real], b[real]), (seed, name)
            else:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=f"{seed} {name}")
        happened.add(found[-1].item())
    assert happened == {True, False}


@needs_extension
def test_nan_goes_on() -> None:
    scores, *others = inputs(0, 2, 3, 6, 3)
    scores[1, 2] = torch.nan
    for step in (reference.beam_step, beam_step):
        going, rows, *_ = step(scores, *others)
        assert going[0].isnan().sum() == 0
        assert going[1].isnan().all() and (rows[1] == 5).all()


@pytest.mark.skipif(_extension.load(), reason="the plain version serves where no kernel does")
def test_without_extension() -> None:
    arguments = inputs(1, 2, 3, 4, 3)
    for a, b in zip(beam_step(*arguments), reference.beam_step(*arguments)):
        assert torch.equal(a, b)


def test_operator_contract() -> None:
    torch.library.opcheck(beam_step, inputs(2, 3, 2, 6, 3))


REFUSED = [
    (0, lambda x: x.double(), "scores must be Float, got Double"),
    (0, lambda x: x[:1], r"scores must have shape \[3, 2\], got \[1, 2\]"),
    (1, lambda x: x[0], "continued must be .sentences, beams, continuations."),
    (2, lambda x: x.int(), "ids must be Long, got Int"),
    (3, lambda x: x[:2], "worst must have shape"),
    (4, lambda x: x.float(), "given must be Long"),
    (5, lambda x: x[:2], "limit must have shape"),
    (7, lambda x: 0, "beam must be positive"),
]


@needs_extension
@pytest.mark.parametrize(("place", "change", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_refuses(place: int, change, message: str) -> None:
    arguments = list(inputs(3, 3, 2, 6, 3))
    arguments[place] = change(arguments[place])
    with pytest.raises(RuntimeError, match=message):
        beam_step(*arguments)
