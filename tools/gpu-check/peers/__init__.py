"""Other implementations of the cap, timed on the same card as ours."""
