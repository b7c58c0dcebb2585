# An environment for NVIDIA GPUs, from the same lock as everywhere else:
#
#   docker build --tag glnet-bench .
#   docker run --rm --gpus all glnet-bench                 # make repro
#   docker run --rm --gpus all glnet-bench make test
#
# CUDA's libraries come with the wheels of torch; the base image declares the driver's capabilities.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS environment

# hadolint ignore=DL3008  # Ubuntu keeps only the newest build of a package, so that a pinned one soon cannot be installed.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner ubuntu --group ubuntu /opt/venv /project

# The user `ubuntu` of the base image.
USER 1000:1000
ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
WORKDIR /project

COPY --chown=ubuntu:ubuntu requirements.lock ./
RUN python3 -m venv "$VENV" \
    && python -m pip install --quiet --require-hashes --no-deps --requirement requirements.lock

FROM environment
COPY --chown=ubuntu:ubuntu . .
RUN make setup
CMD ["make", "repro"]
