"""Every model type of the installed transformers, fastseq against eager attention.

``python -m tests.zoo --out docs/zoo.md`` builds each from a tiny random configuration.
"""
