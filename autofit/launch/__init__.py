"""Starts trials and owns processes and devices. Knows nothing of torch: it sees files, process groups and NVML."""
