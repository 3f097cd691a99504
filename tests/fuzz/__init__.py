"""Hostile input: seeds and their mutations for every decoder, bombs, and the programs that run them.

`python -m tests.fuzz` runs the campaign that docs/decoding.md reports; tests/test_decoding_hostile.py a short, fixed
part of it.
"""
