"""What runs in worker processes. Nothing here loads JAX: a worker starts in half a second and takes
little memory."""
