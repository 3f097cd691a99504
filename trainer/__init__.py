"""Labelled MRI slices in, models that Triton serves out. Needs the extra `trainer`."""
