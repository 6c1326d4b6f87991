"""The side of Baal (PyTorch) in `vgg_cifar10.py`: the same network and weights, as it comes and tuned."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from baal.active.active_loop import ActiveLearningLoop
from baal.active.dataset import ActiveLearningDataset
from baal.active.heuristics import BALD
from baal.bayesian.caching_utils import MCCachingModule
from baal.bayesian.dropout import patch_module
from baal.modelwrapper import ModelWrapper, TrainingArgs
from measuring import Side, median_seconds
from torch import nn
from torch.utils.data import TensorDataset


def baal_side(config: Any, hidden: Sequence[int], images: np.ndarray) -> Side:
    """Baal 2 with the same network and weights."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    tuned = config.side == "baal_tuned"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    y = torch.zeros(len(x), dtype=torch.long)
    network = torch_vgg16(config, hidden).to(device).eval()
    stochastic = patch_module(network, inplace=False)
    stochastic = MCCachingModule(stochastic) if tuned else stochastic

    def waited(value: Any = None) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def wrapper(batch: int) -> ModelWrapper:
        options = {"batch_size": batch, "replicate_in_memory": not tuned, "use_cuda": device == "cuda", "workers": 0}
        optimizer, criterion = torch.optim.SGD(stochastic.parameters(), 1e-3, 0.9), nn.CrossEntropyLoss()
        return ModelWrapper(stochastic, TrainingArgs(optimizer=optimizer, criterion=criterion, epoch=1, **options))

    def predict(batch: int, samples: int) -> float | None:
        if not tuned and batch * samples > 6000:
            return None  # the replicated batch takes more memory than there is to spare
        model, part = wrapper(batch), x[:batch].to(device)
        with torch.no_grad():
            return median_seconds(lambda: waited(model.predict_on_batch(part, iterations=samples)), 1) / batch

    def train() -> dict[str, float]:
        layouts = {"training step": torch.contiguous_format, "training step, NHWC": torch.channels_last}
        return {} if tuned else {name: step_seconds(layout) for name, layout in layouts.items()}

    def step_seconds(layout: Any) -> float:
        module = torch_vgg16(config, hidden).to(device, memory_format=layout).train()
        optimizer = torch.optim.SGD(module.parameters(), 1e-3, 0.9)
        batch = x[: config.train_batch].to(device, memory_format=layout)
        targets = y[: config.train_batch].to(device)

        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(batch), targets).backward()
            optimizer.step()
            waited()

        return median_seconds(step, 4 * config.repeats)

    def one_round() -> float:
        active = ActiveLearningDataset(TensorDataset(x, y), labelled=np.arange(len(x)) < len(x) // 4)
        model, samples = wrapper(config.train_batch), config.num_samples[0]
        loop = ActiveLearningLoop(
            active, model.predict_on_dataset, BALD(), query_size=10, iterations=samples, verbose=False
        )
        begin = time.perf_counter()
        model.train_on_dataset(active)
        loop.step()
        return time.perf_counter() - begin

    square = torch.ones(2048, 2048, device=device)
    rate = 2 * 2048**3 / median_seconds(lambda: waited(square @ square), 15)
    # The draws of the two libraries differ; with ours as masks both must compute the same.
    logits = masked_logits(network, x[: config.batch_sizes[0]].to(device), config.weights)
    return Side(rate, logits, gradient_norms(network, x[:32].to(device)), predict, train, one_round)


def torch_vgg16(config: Any, hidden: Sequence[int]) -> Any:
    """The same function with the same weights."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    copies = config.map_size**2
    layers += [nn.AdaptiveAvgPool2d(config.map_size)] if copies > 1 else []
    layers.append(nn.Flatten())
    channels *= copies
    for width in hidden:
        layers += [nn.Linear(channels, width), nn.ReLU(), nn.Dropout()]
        channels = width
    network = nn.Sequential(*layers, nn.Linear(channels, 10))
    with np.load(config.weights) as arrays, torch.no_grad():
        for kind, torch_kind in (("Conv", nn.Conv2d), ("Dense", nn.Linear)):
            for i, layer in enumerate(layer for layer in network if isinstance(layer, torch_kind)):
                kernel = arrays[f"{kind}_{i}.kernel"]
                if f"{kind}_{i}" == "Dense_0":
                    kernel = np.repeat(kernel, copies, axis=0) / copies
                layer.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1) if kind == "Conv" else kernel.T))
                layer.bias.copy_(torch.tensor(arrays[f"{kind}_{i}.bias"]))
    return network


def masked_logits(network: Any, x: Any, weights: Path) -> list:
    """Logits of the torch network under the dropout masks of baal_jax."""
    outputs = []
    with np.load(weights) as arrays, torch.no_grad():
        for draw in torch.tensor(arrays["masks"], device=x.device):
            hidden, masks = x, iter(draw)
            for layer in network:
                hidden = hidden * next(masks) if isinstance(layer, nn.Dropout) else layer(hidden)
            outputs.append(hidden.cpu().numpy())
    return np.stack(outputs).tolist()


def gradient_norms(network: Any, batch: Any) -> list[float]:
    """Of every kernel, without dropout; the blown-up first dense kernel is summed over its blocks."""
    targets = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
    nn.functional.cross_entropy(network(batch), targets).backward()
    dense = [layer for layer in network if isinstance(layer, nn.Linear)]
    gradients = [layer.weight.grad for layer in network if isinstance(layer, nn.Conv2d)]
    # The blocks of the first kernel get equal gradients, each that of the folded kernel.
    gradients += [dense[0].weight.grad[:, :: dense[0].in_features // 512], *(layer.weight.grad for layer in dense[1:])]
    norms = [float(gradient.norm()) for gradient in gradients]
    network.zero_grad()
    return norms
