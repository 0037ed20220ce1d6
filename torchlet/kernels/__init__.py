"""Kernel templates and device functions that generated code is built from."""
