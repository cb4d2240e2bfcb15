"""Links of simulated worlds: from trace files, and from a fitted generator that needs no file at all."""
