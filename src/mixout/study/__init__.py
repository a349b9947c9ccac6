"""Methods compared over tasks and restarts: declare, run what is missing, keep, analyse, report."""
