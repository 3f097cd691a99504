"""The pictures of the dashboards: a run with trouble on purpose, and what its panels show of it."""
