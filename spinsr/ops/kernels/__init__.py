"""The superpixel ops as Triton kernels behind `torch.library`: the backend 'triton' of `spinsr.ops`.

Importing this package imports nothing; its modules import triton and register the custom ops `spinsr::*`, and are
themselves imported when an op first runs on this backend. With TRITON_INTERPRET=1 in the environment before triton is
imported the kernels run interpreted, on any device and without a GPU.

All arithmetic is in float32, or in float64 when a tensor is; nothing uses TF32 or atomics, so that results repeat bit
for bit on one device.
"""
