"""Compare methods over tasks and restarts: declare a study, run what is missing, keep the runs, analyse, report."""
