"""Where the engine runs: in a thread of this process, or in worker processes."""
