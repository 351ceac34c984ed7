"""Networks, as modules whose every leaf is an array."""
