"""What placement settings may name beside devices and dtypes. No torch, and nothing else to import."""

DISK = "disk"
STORED = "stored"  # a dtype of its own: as the file has the weights
