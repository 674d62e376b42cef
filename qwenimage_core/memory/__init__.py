"""Where weights are while nobody computes with them, and how they come to where they are needed."""
