"""Benchmarks: cases as data, one harness that times them, and the report. Installed as ``fastseq.benchmarks``."""
