"""What devices talk to: streams, sessions, admission. Knows nothing of tensors."""
