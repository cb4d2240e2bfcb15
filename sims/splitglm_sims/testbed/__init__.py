"""The real agent and the real cloud over the emulated link, and the simulator beside them on the same scene."""
