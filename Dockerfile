# The operator's and the trainer's image: `make image`, or docker build --target operator|trainer .
#
# BASE is any image with Python >= 3.11, its venv module, ca-certificates and /bin/sh; with git and ssh, or apt to get them. A GPU needs no other base: PyPI's build
# of torch brings CUDA along, and the machine its driver. For a CPU-only trainer:
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# A pip.conf of your own (an index, a proxy): --secret id=pip,src=pip.conf; it stays out of the image.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS base
# A number, so that kubelet can tell that it is not root; a name for it, because libraries ask for their user's.
RUN echo 'relight:x:10001:10001:Relight:/tmp:/usr/sbin/nologin' >> /etc/passwd && \
    echo 'relight:x:10001:' >> /etc/group
ENV PATH=/opt/relight/bin:/opt/app/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /tmp
LABEL org.opencontainers.image.title="Relight" \
      org.opencontainers.image.licenses="Apache-2.0"

# The environment; Relight itself is in /opt/app, so that a new version of it is a layer of a megabyte.
# A .pth file, and not PYTHONPATH: that one belongs to the job.
FROM base AS environment
RUN python3 -m venv /opt/relight && \
    echo /opt/app > "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/relight.pth"
ARG PIP_EXTRA_INDEX_URL=

FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
[open(f'{extra}.txt', 'w').write('\n'.join([*p['dependencies'], *p['optional-dependencies'][extra]])) for extra in ('operator', 'trainer')]" && \
    grep '^torch==' constraints.txt > torch.txt

FROM environment AS app
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY trainer_image trainer_image
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir --no-deps --target /opt/app .

FROM environment AS operator-environment
COPY --from=requirements /requirements/constraints.txt /requirements/operator.txt /requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir -c /requirements/constraints.txt -r /requirements/operator.txt && \
    pip uninstall --yes pip setuptools

FROM base AS operator
COPY --from=operator-environment /opt/relight /opt/relight
COPY --from=app /opt/app /opt/app
USER 10001:10001
ENTRYPOINT ["python3", "-m", "relight_operator"]

# git and ssh fetch a job's own code (spec.code); a base that has them needs no apt.
# pip stays in this one: FROM it, USER root, RUN pip install what your script needs, USER 10001.
FROM environment AS trainer
# hadolint ignore=DL3008
RUN if ! command -v git || ! command -v ssh; then \
        apt-get update && apt-get install -y --no-install-recommends git openssh-client && rm -rf /var/lib/apt/lists/*; \
    fi
# torch is nine tenths of the image and changes least: a layer of its own.
COPY --from=requirements /requirements/torch.txt /requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir --no-deps -r /requirements/torch.txt
COPY --from=requirements /requirements/constraints.txt /requirements/trainer.txt /requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir -c /requirements/constraints.txt -r /requirements/trainer.txt
COPY --from=app /opt/app /opt/app
USER 10001:10001
ENTRYPOINT ["python3", "-m", "relight_agent"]
