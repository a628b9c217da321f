"""How good is routing, on recorded outcomes alone: curves, measures, baselines, a verdict."""
