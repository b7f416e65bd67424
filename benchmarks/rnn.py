"""``fastseq bench rnn``: recurrent layers and cells against torch's."""

import torch

from . import g2p, workloads
from .cases_rnn import Case, cases
from .suite import Skipped, Suite, Workload


def build(case: Case, device: torch.device) -> Workload:
    if case.kind != "model":
        return workloads.build(case, device)
    path = g2p.checkpoint()
    if path is None:
        raise Skipped("the package g2p_en, which carries the trained model, is not installed")
    return g2p.build(path, case.batch, device)


SUITE = Suite("rnn", "Recurrent layers", cases, build)
