"""Methods compared over restarts: run what is missing, summarise, draw."""
