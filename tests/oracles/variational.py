"""Gaussian weights in float64 NumPy: divergences, and what a convolution sees."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def kl_divergence(mean, std, prior_std):
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return np.sum(np.log(prior_std / std) + (std**2 + mean**2) / (2 * prior_std**2) - 0.5)


def patches(inputs, kernel_size, strides, padding):
    """``[B, H, W, C] -> [B, P, h · w · C]``: what every output pixel sees, one after the other."""
    inputs = np.pad(np.asarray(inputs, np.float64), ((0, 0), *padding, (0, 0)))
    windows = sliding_window_view(inputs, kernel_size, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return np.moveaxis(windows, 3, -1).reshape(len(inputs), windows.shape[1] * windows.shape[2], -1)
