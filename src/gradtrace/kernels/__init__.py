"""What a semiring does to a structure. `reference.pull` reads like the definition."""
