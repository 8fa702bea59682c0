# syntax=docker/dockerfile:1
# The README's commands in a container. They ran in a fresh Debian 12, without
# Docker; the images, that for CUDA too, have not been built yet.
#
#   docker build -t pelk_mm .
#   docker run --rm -it --shm-size=2g -v "$PWD/work_dirs:/pelk_mm/work_dirs" pelk_mm make demo
#
# Without an NVIDIA GPU it becomes 3 GB smaller with torch for CPUs. PyTorch's
# installation page names the index that has it:
#
#   docker build -t pelk_mm --build-arg PIP_EXTRA_INDEX_URL=ADDRESS .
#
# With `docker run --gpus all` torch and the operator use an NVIDIA GPU. mmcv's
# own ops, which detectors need, are built for the CPU; for GPUs it takes longer:
#
#   docker build -t pelk_mm:cuda --build-arg FORCE_CUDA=1 .
FROM debian:12-slim AS system
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM system AS installed
WORKDIR /pelk_mm
COPY . .
# 1 builds mmcv's ops for CUDA, for the GPUs of TORCH_CUDA_ARCH_LIST.
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0"
ARG PIP_EXTRA_INDEX_URL
# pip's cache stays outside of the image and keeps both builds of mmcv.
RUN --mount=type=cache,target=/cache \
    PIP_CACHE_DIR=/cache/cuda-$FORCE_CUDA make install
ENV PATH=/pelk_mm/.venv/bin:$PATH
CMD ["bash"]
