"""What computes: scheduler, key/value pages, runners, and the loop that joins them. Knows nothing of streams."""
