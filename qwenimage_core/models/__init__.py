"""The models of the family, in the published architecture and under the published tensor names."""
