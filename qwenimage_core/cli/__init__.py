"""The command line `qwenimage`."""
