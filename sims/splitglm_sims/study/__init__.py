"""Studies: many simulated worlds from one configuration, run in parallel, compared in one report."""
