"""How good the models are: figures, intervals, curves, a report to read. `command` stays light to import."""
