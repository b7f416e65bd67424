"""A card that does nothing, for machines without one: see card.c."""

NAME = "paper card"  # how it calls itself, to begin with
