"""``fastseq bench attention``: attention as functions and modules against torch's."""

from .attention_work import build
from .cases_attention import cases
from .suite import Suite

SUITE = Suite("attention", "Attention", cases, build)
