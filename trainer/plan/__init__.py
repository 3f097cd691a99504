"""TensorRT plans: built once for a GPU, kept in a cache, checked before they are served. `command` is light to import."""
