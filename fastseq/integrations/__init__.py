"""fastseq inside other libraries; each module registers on request, never on import."""
