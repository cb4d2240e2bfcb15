"""Named devices, clouds and courses of simulated worlds, each with the source of its figures."""
