"""Weight compression: block quantisation, and what makes weights easier to quantise."""
