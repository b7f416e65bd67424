"""Benchmarks (``fastseq.benchmarks``): cases as data, one harness that times them, the report."""
