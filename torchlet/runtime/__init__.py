"""What runs compiled kernels: memory, threads and launches of each device."""
