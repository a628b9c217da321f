"""Route-To-Reason on Ray: pick a model and a reasoning strategy for each query, under one dollar budget."""

__version__ = "0.1.0"
