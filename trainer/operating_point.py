"""The threshold that every published mask figure is made at, and that Triton's mask_postprocess applies."""

# That of the reference system.
MASK_THRESHOLD = 0.40
# In the steps of 1/255 that the served U-Net answers in.
THRESHOLD_STEP = round(MASK_THRESHOLD * 255)
