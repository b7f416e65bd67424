"""``make gpu``: a verdict from one card in minutes, stage by stage, each result on disk at once."""
