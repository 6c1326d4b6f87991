"""The side of Baal (PyTorch) in `vgg_cifar10.py`: the same network and weights, as it comes and tuned."""

from __future__ import annotations

import logging
import time
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
from torch import nn
from torch.utils.data import TensorDataset
from vgg_cifar10 import (
    HEADS,
    Config,
    best,
    entry,
    images,
    median_seconds,
    operations,
    round_operations,
    step_operations,
)


def run_baal(config: Config) -> dict:
    """Baal 2 with the same network and weights."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    tuned = config.side == "baal_tuned"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(images(config.images).transpose(0, 3, 1, 2).copy())
    y = torch.zeros(config.images, dtype=torch.long)
    network = torch_vgg16(config).to(device)

    def waited(value: Any = None) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    square = torch.ones(2048, 2048, device=device)
    rate = 2 * 2048**3 / median_seconds(lambda: waited(square @ square), 15)
    result: dict[str, Any] = {"gemm": rate}

    def wrapper(module: nn.Module, batch: int) -> ModelWrapper:
        arguments = TrainingArgs(
            optimizer=torch.optim.SGD(module.parameters(), 1e-3, 0.9), criterion=nn.CrossEntropyLoss(),
            batch_size=batch, epoch=1, use_cuda=device == "cuda", workers=0, replicate_in_memory=not tuned,
        )  # fmt: skip
        return ModelWrapper(module, arguments)

    # The draws of the two libraries differ; with ours as masks both must compute the same.
    network.eval()
    result["logits"] = masked_logits(network, x[: config.batch_sizes[0]].to(device), config.weights)
    result["gradients"] = torch_gradient_norms(network, x[:32].to(device))
    stochastic = patch_module(network, inplace=False)
    stochastic = MCCachingModule(stochastic) if tuned else stochastic
    if "predict" in config.parts:
        for samples in config.num_samples:
            found = []
            for b in config.batch_sizes:
                if not tuned and b * samples > 6000:
                    continue  # the replicated batch takes more memory than there is to spare
                model = wrapper(stochastic, b)
                part = x[:b].to(device)
                call = lambda s=samples, m=model, p=part: waited(m.predict_on_batch(p, iterations=s))  # noqa: E731
                with torch.no_grad():
                    seconds = median_seconds(call, 1) / b
                found.append(entry(seconds, operations(config, samples, False), "an image", b))
            result[f"predict, {samples} draws"] = best(found)
    if "train" in config.parts and not tuned:
        for name, layout in (("training step", torch.contiguous_format), ("training step, NHWC", torch.channels_last)):
            module = torch_vgg16(config).to(device, memory_format=layout).train()
            optimizer = torch.optim.SGD(module.parameters(), 1e-3, 0.9)
            batch = x[: config.train_batch].to(device, memory_format=layout)
            targets = y[: config.train_batch].to(device)

            def step(module=module, optimizer=optimizer, batch=batch, targets=targets) -> None:
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(batch), targets).backward()
                optimizer.step()
                waited()

            seconds = median_seconds(step, 4 * config.repeats)
            result[name] = entry(seconds, step_operations(config), "a step", config.train_batch)
    if "round" in config.parts:
        mask = np.arange(config.images) < config.images // 4
        active = ActiveLearningDataset(TensorDataset(x, y), labelled=mask)
        model = wrapper(stochastic, config.train_batch)
        samples = config.num_samples[0]
        loop = ActiveLearningLoop(
            active, model.predict_on_dataset, BALD(), query_size=10, iterations=samples, verbose=False
        )
        begin = time.perf_counter()
        model.train_on_dataset(active)
        loop.step()
        result["round"] = entry(time.perf_counter() - begin, round_operations(config), "a round", config.train_batch)
    return result


def torch_vgg16(config: Config) -> Any:
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
    for width in HEADS[config.head]:
        layers += [nn.Linear(channels, width), nn.ReLU(), nn.Dropout()]
        channels = width
    network = nn.Sequential(*layers, nn.Linear(channels, 10))
    with np.load(config.weights) as arrays, torch.no_grad():
        convs = [layer for layer in network if isinstance(layer, nn.Conv2d)]
        dense = [layer for layer in network if isinstance(layer, nn.Linear)]
        for kind, found in (("Conv", convs), ("Dense", dense)):
            for i, layer in enumerate(found):
                kernel = arrays[f"{kind}_{i}.kernel"]
                if f"{kind}_{i}" == "Dense_0":
                    kernel = np.repeat(kernel, copies, axis=0) / copies
                layer.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1) if kind == "Conv" else kernel.T))
                layer.bias.copy_(torch.tensor(arrays[f"{kind}_{i}.bias"]))
    return network


def masked_logits(network: Any, x: Any, weights: Path) -> list:
    """Logits of the torch network under the dropout masks of baal_jax."""
    with np.load(weights) as arrays, torch.no_grad():
        masks = torch.tensor(arrays["masks"], device=x.device)
        outputs = []
        for draw in masks:
            hidden, position = x, 0
            for layer in network:
                if isinstance(layer, nn.Dropout):
                    hidden, position = hidden * draw[position], position + 1
                else:
                    hidden = layer(hidden)
            outputs.append(hidden.cpu().numpy())
    return np.stack(outputs).tolist()


def torch_gradient_norms(network: Any, batch: Any) -> list[float]:
    """As :func:`gradient_norms`; the blown-up first dense kernel is summed over its blocks."""
    targets = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
    nn.functional.cross_entropy(network(batch), targets).backward()
    dense = [layer for layer in network if isinstance(layer, nn.Linear)]
    gradients = [layer.weight.grad for layer in network if isinstance(layer, nn.Conv2d)]
    # The blocks of the first kernel get equal gradients, each that of the folded kernel.
    gradients += [dense[0].weight.grad[:, :: dense[0].in_features // 512], *(layer.weight.grad for layer in dense[1:])]
    norms = [float(gradient.norm()) for gradient in gradients]
    network.zero_grad()
    return norms
