"""The processor, its memory, its compiler and its signals."""
