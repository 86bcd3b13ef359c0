"""Find the critical batch size by three methods: noise scale, branches of a run, sweep of runs."""
