"""Measurements: PSNR and SSIM by protocol, parameters, multiply-adds, latency, and published results beside them."""
