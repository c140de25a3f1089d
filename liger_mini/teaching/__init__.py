"""What the notebooks and reports show: figures, widgets, equivalence checks."""
