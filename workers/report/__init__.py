"""What a run has found, as figures and as one HTML file to look at."""

from workers.report.summary import Percentiles, Summary, summarise
from workers.report.writing import RunFacts, write_report

__all__ = ["Percentiles", "RunFacts", "Summary", "summarise", "write_report"]
