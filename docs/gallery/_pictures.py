"""The pictures of the gallery: every member of a registry on the same toy data, on the same axes."""

import base64
import html
import inspect
import io
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import HTML

import baal_jax as baal
from baal_jax import heuristics, losses, posteriors, selection
from baal_jax.posteriors import kernels, layers

COLOURS = ["#0072b2", "#d55e00", "#009e73"]
EDGE = 3.2
ORDERED = {"fontsize": 7, "ha": "center", "va": "center", "color": "white"}


class Toy(NamedTuple):
    """Points ``[N, 2]``, classes ``[N]``, and which of them are labelled, ``[N]``."""

    inputs: np.ndarray
    targets: np.ndarray
    labelled: np.ndarray


def blobs(seed: int = 0, num: int = 240, num_labelled: int = 4) -> Toy:
    """Three classes, the third in two parts, of which one has no label yet."""
    rng = np.random.default_rng(seed)
    centres = np.array([[-1.6, -1.0], [1.4, -1.3], [0.3, 1.3], [-2.2, 2.0]])
    part = rng.choice(4, num, p=[0.35, 0.3, 0.25, 0.1])
    inputs = centres[part] + rng.normal(size=(num, 2)) * np.array([0.65, 0.65, 0.5, 0.25])[part, None]
    inputs = np.clip(inputs, 0.1 - EDGE, EDGE - 0.1)
    targets = np.minimum(part, 2)
    labelled = np.zeros(num, bool)
    for one in range(3):
        labelled[np.flatnonzero(part == one)[:num_labelled]] = True
    return Toy(inputs.astype(np.float32), targets.astype(np.int32), labelled)


def moons(seed: int = 0, num: int = 80) -> Toy:
    """Two classes, all of them labelled."""
    rng = np.random.default_rng(seed)
    angle, targets = np.pi * rng.uniform(size=num), np.arange(num) % 2
    x = np.where(targets == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(targets == 0, np.sin(angle), 0.5 - np.sin(angle))
    inputs = 1.3 * (np.stack([x - 0.5, y - 0.25], 1) + 0.12 * rng.normal(size=(num, 2)))
    return Toy(inputs.astype(np.float32), targets.astype(np.int32), np.ones(num, bool))


class Member(NamedTuple):
    """What a picture is drawn of. ``build`` makes it; where it is None, ``note`` says why there is no picture."""

    name: str
    build: Callable[[], Any] | None
    note: str = ""


def gallery(module: Any, members: list[Member], draw: Callable[[Any], plt.Figure]) -> HTML:
    """A picture of each, with its name and the first sentence about it, linked to its entry in the reference."""
    return HTML(f'<div class="gallery">{"".join(_card(module, member, draw) for member in members)}</div>')


def _card(module: Any, member: Member, draw: Callable[[Any], plt.Figure]) -> str:
    doc = inspect.getdoc(getattr(module, member.name)) or ""
    sentence = re.split(r"(?<=[.?])(?<!al\.)\s", " ".join(doc.split("\n\n")[0].split()))[0]
    sentence = html.escape(re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w*)`|``([^`]*)``", r"\1\2", sentence))
    link = (
        f'<a href="../reference/{module.__name__}.html#{module.__name__}.{member.name}"><code>{member.name}</code></a>'
    )
    picture = "" if member.build is None else _image(draw(member.build()), f"{member.name}: {sentence}")
    note = f"<br><em>{html.escape(member.note)}</em>" if member.note else ""
    return f'<figure id="{member.name}">{picture}<figcaption>{link} {sentence}{note}</figcaption></figure>'


def _image(figure: plt.Figure, alt: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{content}">'


def _axes(figure: plt.Figure, axes: plt.Axes, edge: float = EDGE) -> None:
    axes.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.03)


# Selections.

TARGETS = np.array([[-2.2, 2.0], [0.3, 1.3]], np.float32)


def predicted(toy: Toy, num_samples: int = 50) -> baal.Predictions:
    """Of a Bayesian quadratic model of the labelled points: logits of its draws; the points themselves are features."""
    posterior = posteriors.logistic_regression(3)
    every = np.concatenate([toy.inputs, TARGETS])
    terms = np.stack([*every.T, every[:, 0] ** 2, every[:, 0] * every[:, 1], every[:, 1] ** 2], axis=1)
    data = baal.Dataset(terms[: len(toy.inputs)], toy.targets)
    state = posterior.fit(jax.random.key(0), data, jnp.asarray(toy.labelled))
    logits = baal.predict(jax.random.key(1), posterior, state, terms, num_samples=num_samples)
    num = len(toy.inputs)
    return baal.Predictions(logits[:, :num], jnp.asarray(toy.inputs), logits[:, num:], jnp.asarray(TARGETS))


OPTIONS = {  # where a default is made for larger pools
    "batch_bald": {"num_configurations": 2000},
    "cluster_margin": {"num_clusters": 24},
    "prob_cover": {"num_classes": 3},
}
SURVIVORS = "k_center, blind to labels, of the 60 with most BALD"
ORACLE = "It reads true labels and a test set, and its batches are those of other selections."


def selections() -> list[Member]:
    """All builders of acquisitions: the registry, and what needs something besides."""
    needs = {
        "precomputed": Member(
            "precomputed", lambda: selection.precomputed(blobs().inputs[:, 0]), "scores: the horizontal axis"
        ),
        "survivors": Member(
            "survivors", lambda: selection.survivors(selection.k_center(use_labelled=False), 60), SURVIVORS
        ),
        "oracle": Member("oracle", None, ORACLE),
    }
    others = [name for name in selection.__all__ if name not in selection.REGISTRY and _builds(name)]
    registry = selection.REGISTRY.items()
    members = [Member(name, partial(build, **OPTIONS.get(name, {}))) for name, build in registry]
    unknown = "It needs an argument that this page does not know."
    return [*members, *(needs.get(name, Member(name, None, unknown)) for name in others)]


def _builds(name: str) -> bool:
    value = getattr(selection, name)
    return inspect.isfunction(value) and name != "by_name" and value.__annotations__.get("return") is baal.Acquisition


def picks(toy: Toy, predictions: baal.Predictions, query_size: int = 10) -> Callable[[baal.Acquisition], plt.Figure]:
    """Draws what an acquisition picks."""
    labelled = jnp.asarray(toy.labelled)

    def draw(acquisition: baal.Acquisition) -> plt.Figure:
        options = {"available": ~labelled, "labelled": labelled, "query_size": query_size}

        @jax.jit
        def query(key, predictions):
            scores = None if acquisition.summarise is None else acquisition.summarise(predictions)
            return baal.select(key, acquisition, predictions, **options), scores

        (picked, _), scores = query(jax.random.key(0), predictions)
        picked = np.asarray(picked)
        figure, axes = plt.subplots(figsize=(2.4, 2.4))
        by_score = isinstance(scores, jax.Array) and scores.shape == labelled.shape
        colour = {"c": np.asarray(scores), "cmap": "viridis_r"} if by_score else {"color": "#b5b5b5"}
        axes.scatter(*toy.inputs.T, s=9, linewidths=0, **colour)
        for number, colour in enumerate(COLOURS):
            axes.scatter(*toy.inputs[toy.labelled & (toy.targets == number)].T, s=26, marker="s", color=colour)
        axes.scatter(*toy.inputs[picked].T, s=75, color="black")
        for number, (x, y) in enumerate(toy.inputs[picked], 1):
            axes.text(x, y, str(number), **ORDERED)
        if _reads_targets(acquisition, predictions):
            axes.scatter(*TARGETS.T, s=60, marker="x", color="#cc79a7")
        _axes(figure, axes)
        return figure

    return draw


def _reads_targets(acquisition: baal.Acquisition, predictions: baal.Predictions) -> bool:
    if acquisition.summarise is None or acquisition.reads_targets:
        return acquisition.reads_targets
    try:
        jax.eval_shape(acquisition.summarise, predictions._replace(target_logits=None, target_features=None))
    except ValueError:
        return True
    return False


# Posteriors.


class Network(nn.Module):
    """Two hidden layers, each with dropout behind it."""

    width: int = 32
    rate: float = 0.1

    @nn.compact
    def __call__(self, x, train: bool):
        for _ in range(2):
            x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(nn.Dense(self.width)(x)))
        return nn.Dense(2)(x)


class BayesianNetwork(nn.Module):
    """The same without dropout, of Bayesian layers."""

    width: int = 32

    @nn.compact
    def __call__(self, x, train: bool):
        for _ in range(2):
            x = nn.relu(layers.BayesianDense(self.width)(x))
        return layers.BayesianDense(2)(x)


def langevin(gradient: Callable) -> Any:
    """Stochastic-gradient Langevin dynamics, with the signature of ``blackjax.sgld``."""

    def step(key, position, batch, step_size, temperature):
        leaves, tree = jax.tree.flatten(position)
        scale = jnp.sqrt(2 * step_size * temperature)
        noise = [
            scale * jax.random.normal(one, leaf.shape)
            for one, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
        moved = jax.tree.map(lambda leaf, slope: leaf + step_size * slope, position, gradient(position, batch))
        return jax.tree.map(jnp.add, moved, tree.unflatten(noise))

    return SimpleNamespace(init=lambda position: position, step=step)


SETTINGS = {  # where a default is made for larger networks
    "bayes_by_backprop": {"prior_std": 1.0},
    "deep_ensemble": {"num_members": 8},
    "mc_dropconnect": {"rate": 0.1},
    "swag": {"start": 0.5},
}


def builders() -> list[Member]:
    """All builders of posteriors: the registry, and what is not built from a model and a trainer."""
    model = baal.from_linen(Network())
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=400, batch_size=16)
    chain = {"step_size": 1e-3, "num_kept": 32, "burn_in": 300, "thinning": 10}
    bayesian = baal.from_linen(BayesianNetwork())
    known = {
        "bayesian_layers": (lambda: posteriors.bayesian_layers(bayesian, trainer), "with layers.BayesianDense"),
        "logistic_regression": (lambda: posteriors.logistic_regression(2), "linear in the inputs"),
        "gaussian_process": (
            lambda: posteriors.gaussian_process(kernels.rbf(1.0), num_classes=2),
            "with kernels.rbf(1.0)",
        ),
        "from_blackjax": (
            lambda: posteriors.from_blackjax(model, trainer, langevin, losses.cross_entropy, **chain),
            "with a sampler of a few lines in the place of blackjax.sgld",
        ),
    }
    members = [
        Member(name, partial(build, model, trainer, **SETTINGS.get(name, {})))
        for name, build in posteriors.REGISTRY.items()
    ]
    found = [name for name in posteriors.__all__ if name not in posteriors.REGISTRY and _is_posterior(name)]
    unknown = "It needs an argument that this page does not know."
    for name in found:
        members.append(Member(name, *known.get(name, (None, unknown))))
    return members


def _is_posterior(name: str) -> bool:
    value = getattr(posteriors, name)
    return inspect.isfunction(value) and value.__annotations__.get("return") is baal.Posterior


def maps(toy: Toy, num_samples: int = 32, side: int = 40, edge: float = 2.4) -> Callable[[baal.Posterior], plt.Figure]:
    """Draws the entropy of the mean prediction and, beside it, what of it the draws disagree about."""
    line = np.linspace(-edge, edge, side, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)

    def draw(posterior: baal.Posterior) -> plt.Figure:
        state = posterior.fit(jax.random.key(0), baal.Dataset(toy.inputs, toy.targets), jnp.asarray(toy.labelled))
        logits = baal.predict(jax.random.key(1), posterior, state, grid, num_samples=num_samples, batch_size=len(grid))
        figure, both = plt.subplots(1, 2, figsize=(4.6, 2.3))
        mean = np.asarray(jax.nn.softmax(logits).mean(0)[:, 1]).reshape(side, side)
        for axes, score in zip(both, (heuristics.entropy, heuristics.bald), strict=True):
            values = np.asarray(score(logits)).reshape(side, side)
            axes.pcolormesh(line, line, values, vmin=0, vmax=np.log(2), cmap="magma", rasterized=True)
            axes.contour(line, line, mean, levels=[0.5], colors="white", linewidths=0.8)
            for number, colour in enumerate(COLOURS[:2]):
                axes.scatter(
                    *toy.inputs[toy.targets == number].T, s=7, color=colour, edgecolors="white", linewidths=0.3
                )
            _axes(figure, axes, edge)
        return figure

    return draw
