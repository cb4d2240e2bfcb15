"""The vocabulary shared by every room: errors, layer ranges, plans, shapes, settings, telemetry names."""
