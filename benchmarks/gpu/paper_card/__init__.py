"""A card that does nothing, for machines without one: see card.c."""
