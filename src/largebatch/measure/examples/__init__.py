"""Exact statistics of single examples' gradients, from one ordinary backward."""
