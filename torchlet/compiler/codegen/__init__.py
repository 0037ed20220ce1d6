"""One module per target: prints kernels as source text."""
