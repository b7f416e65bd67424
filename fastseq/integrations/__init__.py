"""fastseq inside other libraries; each module registers on request, Opacus' when both are there."""
