"""Make and record runs, and write the tables, pictures and expected numbers of the experiments."""
