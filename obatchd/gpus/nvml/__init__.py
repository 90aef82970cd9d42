"""GPUs through NVML. For the probe process only."""
