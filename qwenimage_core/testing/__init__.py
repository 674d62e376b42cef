"""For tests, here and in plugins: tiny random models in the exact hub layout (`write_tiny_checkpoint`)."""
