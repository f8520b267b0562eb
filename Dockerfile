# The page and the API in a small image: light core and FastAPI, no TensorFlow, no compiler, an ordinary user.
#
#   docker build -t dermlens .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges -p 127.0.0.1:8000:8000 \
#       -e DERMLENS_TOKEN=... dermlens
#
# BASE lets you take Python from a mirror of your own; it needs Python 3.11, 3.12 or 3.13 and glibc.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/serve.txt requirements/serve.txt
RUN python -m venv /app && /app/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /tools && /tools/bin/pip install --no-cache-dir --disable-pip-version-check "hatchling>=1.27,<2" \
    && /tools/bin/python -m hatchling build -t wheel -d /wheels \
    && /app/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /wheels/*.whl \
    && /app/bin/python -m compileall -q /app/lib \
    && rm -f /app/lib/python3*/site-packages/openvino/libs/libopenvino_intel_gpu_plugin.so \
             /app/lib/python3*/site-packages/openvino/libs/libopenvino_intel_npu_plugin.so \
    && /app/bin/pip uninstall -y -q pip

FROM ${BASE}
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
# Kubernetes has probes of its own (docs/serve.md); this one is for plain Docker.
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["dermlens", "serve", "--host", "0.0.0.0", "--port", "8000"]
