# Two images: `base_baal` to develop, `prod_baal` to run experiments. Python packages are those of the locks in .docker,
# and their layers stay cached until a lock changes. With an NVIDIA GPU: docker run --gpus all …
#
#   docker build --target base_baal -t baal_jax:base .
#   docker build --target prod_baal -t baal_jax:prod .                               (add --build-arg ACCELERATOR=cpu)
#   docker run --gpus all -v ~/tensorflow_datasets:/data -v $PWD/results:/baal_jax/results \
#       baal_jax:prod experiments/vgg_mcdropout_cifar10.py
FROM python:3.12.12-slim-bookworm AS python
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=agg \
    TFDS_DATA_DIR=/data VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
RUN useradd --create-home --uid 1000 baal \
    && python -m venv /opt/venv \
    && install --directory --owner=baal /data /baal_jax /baal_jax/results
WORKDIR /baal_jax

FROM python AS dependencies
ARG ACCELERATOR=cuda
COPY .docker/experiments.txt .docker/
RUN python -m pip install --no-cache-dir --require-hashes -r .docker/experiments.txt
COPY .docker/cuda.txt .docker/
RUN if [ "$ACCELERATOR" = cuda ]; then python -m pip install --no-cache-dir --require-hashes -r .docker/cuda.txt; fi

FROM dependencies AS base_baal
COPY .docker/development.txt .docker/
RUN python -m pip install --no-cache-dir --require-hashes -r .docker/development.txt
COPY --chown=baal:baal . .
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation -e .
USER 1000
CMD ["python", "-m", "pytest", "-n", "2", "--dist", "loadfile"]

FROM dependencies AS prod_baal
COPY --chown=baal:baal pyproject.toml README.md LICENSE ./
COPY --chown=baal:baal baal_jax baal_jax
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .
COPY --chown=baal:baal experiments experiments
USER 1000
VOLUME ["/data", "/baal_jax/results"]
ENTRYPOINT ["python"]
CMD ["experiments/mlp_mcdropout_digits.py"]
