"""``fastseq bench models``: decoding and training of whole models against other libraries."""

from .cases_models import cases
from .models_work import build
from .suite import Suite

SUITE = Suite("models", "Models", cases, build)
