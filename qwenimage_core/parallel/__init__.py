"""Several devices: torch starts one process for each, and they share a run in one of three ways."""
