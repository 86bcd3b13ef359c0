"""Compute exact statistics of single examples' gradients during an ordinary backward call."""
