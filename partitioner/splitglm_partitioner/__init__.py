"""Where to cut: profiles, costs, constraints and the choice of a plan per request. Pure; numpy only."""
