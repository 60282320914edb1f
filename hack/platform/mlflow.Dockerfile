# MLflow's server as it is on PyPI, for tests; the context is the repository's root. BASE_IMAGE and the two optional
# mounts are those of the Dockerfile there.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 VIRTUAL_ENV=/opt/mlflow
COPY requirements/uv.txt requirements/mlflow.txt /build/requirements/
RUN command -v uv || pip install --no-cache-dir --require-hashes -r /build/requirements/uv.txt
RUN uv venv --python "$(command -v python3)" /opt/mlflow \
    && uv pip install --require-hashes --compile-bytecode -r /build/requirements/mlflow.txt

FROM ${BASE_IMAGE}
# USER: uid 65532 has no line in /etc/passwd. GIT_PYTHON_REFRESH: there is no git, and none is needed.
ENV PATH=/opt/mlflow/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=mlflow \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /tmp
COPY --from=build /opt/mlflow /opt/mlflow
USER 65532:65532
ENTRYPOINT ["mlflow"]
