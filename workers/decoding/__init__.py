"""Bytes in, pixels out: one module for each family of file formats."""
