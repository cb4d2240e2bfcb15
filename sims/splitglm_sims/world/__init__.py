"""Simulated worlds: devices, links and clouds in virtual time (SimPy), with the product's policy and scheduler."""
