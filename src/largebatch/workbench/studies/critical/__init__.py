"""The critical batch by three methods: the noise scale, branches of a run, and a sweep of runs."""
