"""Simulated and emulated worlds: link traces, the link emulator, and what is driven by them."""
