"""What commands work with, put together from their options: data, network, trainer and posteriors."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from baal_jax import data, losses, metrics, models, posteriors, selection
from baal_jax._util import files, images
from baal_jax.training import trainer
from baal_jax.typing import Acquisition, Dataset, Model, Posterior

HEADS = ("logistic_regression", "logistic_regression_point")  # of rows of numbers, without a network
_OF_DRAWS = ("bald", "epig", "mean_std", "variation_ratio", "variance")  # 0 wherever there is one draw


class Pool(NamedTuple):
    """What people may be asked to label."""

    inputs: np.ndarray  # [N, …]
    references: list[str]  # what is shown of them
    embeddings: np.ndarray  # float32[N, D], numbers that a cold start can compare
    said: str = ""  # what was read


def pool(options: Any, kind: str) -> Pool:
    """The examples that the options of a labelling project name; ``kind`` is that of what people are shown."""
    name, path = options.data, Path(options.data)
    if path.is_dir():
        found = data.open(path, image_size=options.image_size, num_test=0)
        names = [options.url_prefix + quote(file) if options.url_prefix else file for file in found.references or ()]
        inputs = np.asarray(found.train.inputs)  # names are quoted where they are part of a URL
        said = found.said.replace(f", {found.num_classes} classes", ", in folders whose names are no labels here")
        return Pool(inputs, names, _flat(inputs), said)
    if is_table(name):
        found = data.open(path, num_test=0)
        if kind != "text":
            raise ValueError(f"data={name!r} is a table, which is shown as text: use --kind text, or an .npz file")
        inputs = np.asarray(found.train.inputs)
        return Pool(inputs, [*(found.references or ())], _flat(inputs), found.said)
    if not path.is_file() or path.suffix != ".npz":
        raise ValueError(f"data={name!r} is neither a folder of images nor an .npz file, nor a table")
    with files.about(f"data={name!r}", files.CURE):
        arrays = files.arrays_of(path, ["inputs"], ["references", "embeddings"])
        inputs = np.asarray(data.from_arrays(arrays["inputs"]).inputs)
        embeddings = np.asarray(data.from_arrays(arrays.get("embeddings", inputs)).inputs)
        references = files.texts_of(arrays["references"]) if "references" in arrays else None
    if references is None and kind == "image" and images.are_pictures(inputs.shape):
        references = [f"{options.url_prefix}images/{i}.png" for i in range(len(inputs))]
    if references is None:
        raise ValueError(f"data={name!r} lacks references: give what people are shown, one for each input")
    for what, rows in (("references", references), ("embeddings", embeddings)):
        if len(rows) != len(inputs):
            raise ValueError(f"data={name!r} holds {len(rows)} {what} for {len(inputs)} inputs")
    return Pool(inputs, references, _flat(embeddings))


def is_table(name: Any) -> bool:
    """Whether a pool is one of rows, which are shown as text."""
    return Path(name).suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson")


def _flat(rows: np.ndarray) -> np.ndarray:
    """``float32[N, D]``; bytes as numbers between 0 and 1."""
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    return flat / 255 if rows.dtype == np.uint8 else flat


def named(option: str, spec: str) -> Any:
    """What ``file.py:name`` or ``package.module:name`` names."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ValueError(f"{option}={spec!r} must be file.py:name or package.module:name")
    try:
        if not place.endswith(".py"):
            return getattr(importlib.import_module(place), name)
        place = str(Path(place).expanduser().resolve())
        known = f"_given_{place}"  # once, however often it is named
        if known not in sys.modules:
            found: Any = importlib.util.spec_from_file_location(known, place)
            sys.modules[known] = importlib.util.module_from_spec(found)
            found.loader.exec_module(sys.modules[known])
        return getattr(sys.modules[known], name)
    except Exception as error:  # whatever a file of somebody's raises
        sys.modules.pop(f"_given_{place}", None)
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{option}={spec!r} cannot be imported ({said})") from error


def _called(option: str, spec: str, function: Any, *given: Any, **more: Any) -> Any:
    try:
        return function(*given, **more)
    except Exception as error:  # of somebody's function
        raise ValueError(f"{option}={spec!r} fails when it is called ({type(error).__name__}: {error})") from error


def pick(name: str, *, multi_label: bool = False) -> tuple[str, Acquisition]:
    """A strategy by its name, or of one's own."""
    if ":" not in name:
        return name, selection.by_name(name, multi_label=multi_label)
    found: Any = named("strategies", name)
    if callable(found) and not isinstance(found, Acquisition):
        function: Any = found
        needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
        found = selection.top_k(function) if len(needed) == 1 else _called("strategies", name, function)
    if not isinstance(found, Acquisition):
        raise ValueError(f"strategies={name!r} is a {type(found).__name__}: name an acquisition")
    return name.rpartition(":")[2], found


def picks(names: Sequence[str]) -> dict[str, Acquisition]:
    """Strategies by name."""
    found = {}
    for one in names:
        name, acquisition = pick(one)
        if name in found:
            raise ValueError(f"strategies={one!r} has the name of another: give it one of its own")
        found[name] = acquisition
    return found


def metric_set(base: metrics.MetricSet, spec: str | None) -> tuple[metrics.MetricSet, str | None, bool | None]:
    """Metrics with one of one's own, the name of what matters most, and whether more of it is better."""
    if spec is None or ":" not in spec:
        return base, spec, None
    function, name = named("metric", spec), spec.rpartition(":")[2]

    def compute(summary: Any, targets: Any) -> dict[str, Any]:
        values = base.compute(summary, targets)
        if name in values:
            raise ValueError(f"metric={spec!r} has the name of one that there is: give it another")
        return {**values, name: _called("metric", spec, function, summary, targets)}

    return metrics.MetricSet(base.summarise, compute), name, bool(getattr(function, "higher_is_better", True))


def learners(
    options: Any, names: Any, num_classes: int | None, shape: Any, dtype: Any
) -> tuple[Model, dict[str, Posterior]]:
    """The network that options name, and posteriors of it and its trainer by name; without classes for numbers."""
    model = network(options.model, num_classes or 1, shape, options.rate)
    if ":" in options.model:  # a network of somebody's that fails says so in a line
        kind = jax.ShapeDtypeStruct((2, *shape), dtype)
        key = jax.eval_shape(lambda: jax.random.key(0))
        tried = lambda key, inputs: model.apply(model.init(key, inputs), inputs, key)  # noqa: E731
        _called("model", options.model, jax.eval_shape, tried, key, kind)
    loss = losses.squared_error if num_classes is None else losses.cross_entropy
    loss = losses.binary_cross_entropy if getattr(options, "multi_label", False) else loss
    fit = trainer(optax.adam(options.learning_rate), loss, num_steps=options.num_steps, batch_size=options.batch_size)
    found = {}
    for name in names:
        make = posteriors.REGISTRY.get(name) if ":" not in name else named("posteriors", name)
        if name in HEADS:
            if num_classes is None or len(shape) != 1:
                raise ValueError(f"posteriors={name!r} is for classes and rows of numbers, such as embeddings")
            make = posteriors.logistic_regression(num_classes, point_estimate=name == HEADS[1])
        if make is None:
            known = ", ".join([*posteriors.REGISTRY, *HEADS])
            raise ValueError(f"posteriors={name!r} is unknown: use one of {known}, or file.py:name")
        one = make if isinstance(make, Posterior) else _called("posteriors", name, make, model, fit)
        if not isinstance(one, Posterior):
            raise ValueError(f"posteriors={name!r} made a {type(one).__name__}: name a posterior")
        if name.rpartition(":")[2] in found:
            raise ValueError(f"posteriors={name!r} has the name of another: give it one of its own")
        found[name.rpartition(":")[2]] = one
    if not found:
        raise ValueError("posteriors is empty: name at least one")
    return model, found


def require_draws(by_name: Mapping[str, Posterior], strategies: Sequence[str]) -> None:
    """Refuses strategies that ask whether draws disagree, of a posterior that has one: all their scores are equal."""
    for name, posterior in by_name.items():
        if posterior.num_draws == 1 and (blind := [one for one in strategies if one.endswith(_OF_DRAWS)]):
            cure = f"take margin, or another posterior, such as {HEADS[0]}"
            raise ValueError(f"{blind[0]!r} asks whether draws disagree, but {name} has one draw alone: {cure}")


class _Standardised(NamedTuple):
    """A fit to targets of mean 0 and variance 1."""

    members: Any
    centre: jax.Array
    width: jax.Array


def standardised(posterior: Posterior) -> Posterior:
    """The posterior of numbers in units of their own spread, which networks learn whatever they measure."""

    def fit(key: Any, dataset: Any, labelled: jax.Array, previous: Any = None) -> _Standardised:
        count = jnp.maximum(jnp.sum(labelled, dtype=jnp.float32), 1.0)
        known = jnp.where(labelled, dataset.targets, 0.0)
        centre = jnp.sum(known) / count
        spread = jnp.sqrt(jnp.sum(jnp.where(labelled, (known - centre) ** 2, 0.0)) / count)
        width = jnp.where(spread > 0, spread, 1.0)
        scaled = dataset._replace(targets=(dataset.targets - centre) / width)
        inner = previous.members if previous is not None else None
        return _Standardised(posterior.fit(key, scaled, labelled, inner), centre, width)

    def apply(state: _Standardised, draw: Any, inputs: Any) -> Any:
        return posterior.apply(state.members, draw, inputs) * state.width + state.centre

    sample = lambda key, state, count: posterior.sample(key, state.members, count)  # noqa: E731
    return posterior._replace(fit=fit, sample=sample, apply=apply)


def of_any(features: Any, names: Sequence[str]) -> Any:
    """Features of a network; of a head that has none, its inputs. ``names`` are those of the posteriors."""
    if not any(":" in name or name in HEADS for name in names):
        return features

    def read(state: Any, inputs: Any) -> Any:
        has_network = hasattr(getattr(state, "members", state), "variables")
        return features(state, inputs) if has_network else inputs

    return read


def of_standardised(features: Any) -> Any:
    """What reads the state of a posterior, for one of :func:`standardised`."""
    return lambda state, inputs: features(state.members, inputs)


def check(options: Any, posterior: Posterior, inputs: np.ndarray, num_classes: int | None) -> None:
    """Refuses a posterior that cannot learn such targets, before people are asked."""
    shape = (4, num_classes) if getattr(options, "multi_label", False) else (4,)
    targets = jax.ShapeDtypeStruct(shape, np.float32 if num_classes is None else np.int32)
    dataset = Dataset(jax.ShapeDtypeStruct((4, *inputs.shape[1:]), inputs.dtype), targets)
    key, labelled = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((4,), np.bool_)
    _called("posterior", options.posterior, jax.eval_shape, posterior.fit, key, dataset, labelled)


def network(name: str, num_outputs: int, input_shape: Sequence[int], rate: float) -> Model:
    """A network by its name, as commands document it; ``rate`` is the dropout of those that are built in."""
    if name == "mlp":
        return models.from_linen(MLP(num_outputs, rate))
    if name == "cnn":
        if len(input_shape) != 3:
            raise ValueError(f"model='cnn' needs images [H, W, C], but inputs are {tuple(input_shape)}: use mlp")
        return models.from_linen(SmallCNN(num_outputs, rate))
    if ":" not in name:
        raise ValueError(f"model={name!r} is unknown: use mlp or cnn, or file.py:name of a network of yours")
    made: Any = named("model", name)
    if isinstance(made, type) and issubclass(made, nnx.Module):
        whole: Any = made
        return models.from_nnx(lambda rngs: whole(num_outputs, rngs=rngs))
    if callable(made) and not isinstance(made, nn.Module | nnx.Module | Model):
        made = _called("model", name, made, num_outputs)
    if isinstance(made, Model):
        return made
    if isinstance(made, nn.Module):
        return models.from_linen(made)
    if isinstance(made, nnx.Module) or callable(made):
        return models.from_nnx(made)
    raise ValueError(f"model={name!r} made {type(made).__name__}: return a linen module, or rngs -> nnx module")


class MLP(nn.Module):
    """Dense layers, each followed by ReLU and dropout."""

    num_outputs: int
    rate: float = 0.5
    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, …] -> [B, num_outputs]``."""
        x = _scaled(x).reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(nn.Dense(width)(x)))
        return nn.Dense(self.num_outputs)(x)


class SmallCNN(nn.Module):
    """Convolutions with 2×2 pooling, and one dense layer with dropout: the draws share all but the last layer."""

    num_outputs: int
    rate: float = 0.5
    channels: Sequence[int] = (32, 64)
    hidden: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, C] -> [B, num_outputs]``."""
        x = _scaled(x)
        for width in self.channels:
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs)(nn.Dropout(self.rate, deterministic=not train)(x))


def _scaled(x: jax.Array) -> jax.Array:
    """Integer pixels as floats in [-1, 1]; floats as they are."""
    return x.astype(jnp.float32) / 127.5 - 1.0 if jnp.issubdtype(x.dtype, jnp.integer) else x
