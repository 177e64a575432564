"""Native kernels with a numpy reference each."""
