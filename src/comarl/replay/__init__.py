"""Where experience waits to be learnt from."""
