"""Teams that play episodes."""
