"""Programs of other people as loads: gpu-burn and the diagnostics of NVIDIA DCGM."""
