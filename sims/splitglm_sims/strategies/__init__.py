"""Ways of choosing plans that are compared with each other: one small file each, with its source."""
