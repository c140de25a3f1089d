"""What one runs: the embedded models, the demo, ablations, the walk, equivalence, benchmarks (chapters 00, 08 to 10)."""

from liger_mini.experiments.embedded import WINDOW, load_recovered, load_smollm2, load_teacher

__all__ = ["WINDOW", "load_recovered", "load_smollm2", "load_teacher"]
