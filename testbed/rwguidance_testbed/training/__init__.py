"""How models of the test bed are trained: the loop, the optimizer, attention, and the card."""
