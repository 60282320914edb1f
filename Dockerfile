# Four images from one file, --target operator | controller | trainer | follower, and for nodes with GPUs trainer-cuda.
#
# BASE_IMAGE needs a python3 of version 3.11 and CA certificates: python:3.11-slim, or a minimal Debian.
# The build looks for two optional mounts: uv at /usr/local/bin/uv, and a folder of wheels at /wheels. Where torch comes
# from, and how that is changed, says hack/torch_source.py; TORCH_INDEX= (empty) takes a build with CUDA.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
# USER: kopf and torch ask for the user's name, and uid 65532 has no line in /etc/passwd.
ENV PATH=/opt/nas/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/nas/src \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=nas
WORKDIR /tmp

# ---- build stages: nothing of uv, pip or their caches reaches an image ----------------------------------------
FROM base AS build
ENV UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 VIRTUAL_ENV=/opt/nas
COPY requirements/uv.txt /build/requirements/
RUN command -v uv || pip install --no-cache-dir --require-hashes -r /build/requirements/uv.txt
RUN uv venv --python "$(PATH=/usr/local/bin:/usr/bin command -v python3)" /opt/nas

FROM build AS build-operator
COPY requirements/operator.txt /build/requirements/
RUN uv pip install --require-hashes --compile-bytecode -r /build/requirements/operator.txt

FROM build AS build-follower
COPY requirements/follower.txt /build/requirements/
RUN uv pip install --require-hashes --compile-bytecode -r /build/requirements/follower.txt

# torch is most of an image and the slowest to fetch: one layer, shared by controller and trainer. Headers and
# static libraries serve only those who compile against torch.
FROM build AS build-torch
ARG WHEELS=/wheels
ARG TORCH_INDEX
COPY hack/torch_source.py /build/hack/
COPY requirements/torch-cpu.txt requirements/torch-pypi.txt /build/requirements/
RUN set -eu; \
    python3 /build/hack/torch_source.py uv pip install --require-hashes --compile-bytecode; \
    site="$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
    rm -rf "$site/torch/include" "$site/torch/test" "$site/torch/share" "$site"/torch/lib/*.a

# What a role adds to the torch layer, found by change time, so that the layer itself stays shared.
FROM build-torch AS build-controller
COPY requirements/controller.txt /build/requirements/
RUN touch /tmp/before && uv pip install --require-hashes --compile-bytecode -r /build/requirements/controller.txt \
    && mkdir /opt/added && cd /opt/nas \
    && find . -cnewer /tmp/before ! -type d -print0 | tar --null -T - -cf - | tar -xf - -C /opt/added

FROM build-torch AS build-trainer
COPY requirements/trainer.txt /build/requirements/
RUN touch /tmp/before && uv pip install --require-hashes --compile-bytecode -r /build/requirements/trainer.txt \
    && mkdir /opt/added && cd /opt/nas \
    && find . -cnewer /tmp/before ! -type d -print0 | tar --null -T - -cf - | tar -xf - -C /opt/added

# The trainer on PyPI's build of torch, which brings CUDA: no layer is shared with the others.
FROM build AS build-trainer-cuda
COPY hack/torch_source.py /build/hack/
COPY requirements/torch-cpu.txt requirements/torch-pypi.txt requirements/trainer.txt /build/requirements/
RUN set -eu; \
    WHEELS= TORCH_INDEX= python3 /build/hack/torch_source.py uv pip install --require-hashes --compile-bytecode; \
    uv pip install --require-hashes --compile-bytecode -r /build/requirements/trainer.txt; \
    site="$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
    rm -rf "$site/torch/include" "$site/torch/test" "$site/torch/share" "$site"/torch/lib/*.a

# ---- our own packages, apart from the heavy stages: a change of code rebuilds only these -------------------------
FROM base AS source-operator
COPY api kube operator /opt/nas/src/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/nas/src

FROM base AS source-controller
COPY api store log report kube controller_image /opt/nas/src/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/nas/src

FROM base AS source-trainer
COPY api store trainer_image /opt/nas/src/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/nas/src

FROM base AS source-follower
COPY api store log report followers /opt/nas/src/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/nas/src

# ---- images ---------------------------------------------------------------------------------------------------
FROM base AS operator
COPY --from=build-operator /opt/nas /opt/nas
COPY --from=source-operator /opt/nas/src /opt/nas/src
USER 65532:65532
ENTRYPOINT ["python3", "-m", "nas_operator"]

FROM base AS follower
COPY --from=build-follower /opt/nas /opt/nas
COPY --from=source-follower /opt/nas/src /opt/nas/src
USER 65532:65532
ENTRYPOINT ["python3", "-m", "nas_followers"]

FROM base AS torch
COPY --from=build-torch /opt/nas /opt/nas

FROM torch AS controller
COPY --from=build-controller /opt/added /opt/nas
COPY --from=source-controller /opt/nas/src /opt/nas/src
USER 65532:65532
ENTRYPOINT ["python3", "-m", "nas_controller"]

FROM torch AS trainer
COPY --from=build-trainer /opt/added /opt/nas
COPY --from=source-trainer /opt/nas/src /opt/nas/src
USER 65532:65532
ENTRYPOINT ["python3", "-m", "nas_trainer"]

FROM base AS trainer-cuda
# What of the node's driver its container runtime is to bring in; which GPUs, only the device plugin says.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-trainer-cuda /opt/nas /opt/nas
COPY --from=source-trainer /opt/nas/src /opt/nas/src
USER 65532:65532
ENTRYPOINT ["python3", "-m", "nas_trainer"]
