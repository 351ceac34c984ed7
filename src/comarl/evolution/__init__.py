"""Teams that evolve: operators, and the population."""
