# An image with the command `surf` and the versions of lock/.
#   docker build -t surf .                                                           for NVIDIA GPUs (and CPUs): 7 GB
#   docker build -t surf --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .         for CPUs alone: 2 GB
#   docker run --rm -it --gpus all --shm-size 2g -v "$PWD:/work" surf fit --config digits_mixit
FROM python:3.12-slim
ARG TORCH_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY lock /source/lock
# pesq is compiled. PyPI's torch, torchvision and torchaudio are CUDA builds; where others are asked for, all three are, and
# CUDA's libraries are left out.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && cd /source && cp lock/dev.txt wanted.txt \
    && if [ -n "$TORCH_INDEX" ]; then \
        pip install --index-url "$TORCH_INDEX" $(grep -oE '^torch(vision|audio)?==[0-9.]+' lock/dev.txt) \
        && sed -i -E '/^(torch|torchvision|torchaudio|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/,/[^\\]$/d' wanted.txt; \
    fi \
    && pip install --no-deps --require-hashes -r wanted.txt -r lock/audio.txt \
    && apt-get purge -y --auto-remove gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip install --no-deps --no-build-isolation /source && surf info
WORKDIR /work
ENTRYPOINT ["surf"]
