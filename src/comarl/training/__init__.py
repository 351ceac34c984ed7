"""What is the same for every algorithm: one round, from play to evolution, and a run of many."""
