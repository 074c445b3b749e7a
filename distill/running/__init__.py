"""Many chains: where they run, what they cost, and what a person sees meanwhile."""
